"""Let survivors live under stock torchrun, which ends all workers of a node as soon as one ends badly.

    torchrun --nproc-per-node 4 -m elaswave.shim [--min-ranks N] [--failure-timeout-s S] [-m] train.py ...

torchrun starts a shim per rank, and the shim the trainer. Each shim is the agent of a "node" with that one rank
(elaswave/launcher): deaths, fences, hangs and news are those of ``elastates run``. A shim whose trainer has died waits
for the others and then ends with the status of the whole job, so torchrun sees nobody fail while anybody lives. Spares
and replacements need ``elastates run``.

The shims meet through torchrun's own store, which also hands out the job's secret unless ELASWAVE_SECRET is set: who
can read that store can join.
"""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta

from elaswave import exits, place
from elaswave.errors import LaunchError
from elaswave.launcher.options import Options
from elaswave.timeouts import Timeouts


def main(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Be the agent of one of torchrun's ranks; returns the job's status (elaswave/exits.py)."""
    parser = _parser()
    words = parser.parse_args(arguments)
    try:
        here = place.find(environment)
        if here.launcher != "torchrun":
            raise LaunchError(
                f"RANK, WORLD_SIZE and so on are torchrun's to set, but it was started by: {here.launcher}"
            )
        timeouts = Timeouts(words.failure_timeout_s)
        meeting_point, secret = _agree(here, environment, timeouts)
        options = Options(
            command=(words.script, *words.arguments),
            is_module=words.module,
            num_nodes=here.num_ranks,
            node_rank=here.rank,
            min_ranks=words.min_ranks,
            meeting_points=(meeting_point,),
            timeouts=timeouts,
            is_leashed=True,
            secret=secret,
        )
    except (LaunchError, ValueError) as error:
        print(f"elaswave.shim: {error}", file=sys.stderr)
        return exits.USAGE
    from elaswave.launcher.runs import run

    return run(options, is_shim=True)


def _agree(here: place.Place, environment: Mapping[str, str], timeouts: Timeouts) -> tuple[str, str]:
    """As below.

    Raises:
        LaunchError: there is no store, or rank 0's shim has put nothing into it in time.
    """
    from torch.distributed import DistError

    try:
        return _read_store(here, environment, timeouts)
    except DistError as error:
        where = f"torchrun's store at {here.master_host}:{here.master_port} (MASTER_ADDR, MASTER_PORT)"
        raise LaunchError(f"{where} does not lead to the other shims: {str(error).splitlines()[0]}") from error


def _read_store(here: place.Place, environment: Mapping[str, str], timeouts: Timeouts) -> tuple[str, str]:
    """(where the shims meet, the job's secret): rank 0 decides, the others read it."""
    from torch.distributed import PrefixStore, TCPStore

    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise LaunchError("the shim needs a store that torchrun hosts: --standalone, or --rdzv-backend c10d or static")
    own = TCPStore(here.master_host, here.master_port, is_master=False, timeout=timedelta(seconds=timeouts.meeting_s))
    store = PrefixStore(f"elaswave/shim/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", own)
    if here.rank == 0:
        store.set("meeting_point", f"{_own_address(here)}:{_free_port()}")
        store.set("secret", environment.get("ELASWAVE_SECRET") or secrets.token_hex(32))
    return store.get("meeting_point").decode(), store.get("secret").decode()


def _own_address(here: place.Place) -> str:
    """The address of this host on the way to the master, which the other hosts reach as well."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((here.master_host, here.master_port))  # sends nothing
        address: str = probe.getsockname()[0]
    return address


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        port: int = listener.getsockname()[1]
    return port


def _parser() -> argparse.ArgumentParser:
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="torchrun ... -m elaswave.shim", description=about, allow_abbrev=False)
    parser.add_argument("--min-ranks", type=int, default=1, metavar="N", help="end the job when fewer are left (1)")
    parser.add_argument("--failure-timeout-s", type=float, default=30.0, metavar="S", help="as of elastates run (30)")
    parser.add_argument("--module", "-m", action="store_true", help="SCRIPT is a module's name")
    parser.add_argument("script", metavar="SCRIPT")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    return parser


if __name__ == "__main__":
    sys.exit(main())
