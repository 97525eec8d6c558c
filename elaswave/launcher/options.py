"""The options of ``elastates run``: one frozen dataclass, and the parser whose help is the manual page."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from elaswave.timeouts import Timeouts

EPILOG = """\
exit status:
    0    the job finished: at least --min-ranks ranks ended with 0
    2    wrong usage; nothing was started
    85   the agents of the job did not meet in time; nothing was started
    86   this node's ranks were fenced: the others went on without them
    87   this node's ranks lost their quorum
    88   only newcomers were left, and nobody who could have told them the state of training
    other: that of the worker whose end left fewer than --min-ranks (128 + N: it was killed by signal N)

SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2 are passed on to the workers; the first three end the job, a second one
of them at once. docs/launcher.md has the environment of the workers and the rules.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What one agent is asked to run."""

    command: tuple[str, ...]
    """script (or module) and its arguments, the same for every rank"""
    is_module: bool = False
    """the script is the name of a module"""
    num_nodes: int = 1
    """agents of the job"""
    node_rank: int = 0
    """which of them this is"""
    workers_per_node: int = 1
    """ranks that this agent starts; 0: it has spares only"""
    min_ranks: int = 1
    """the job ends when fewer ranks than this are running or have finished"""
    num_spares: int = 0
    """processes that wait here, torch imported, to take a dead rank's place"""
    replaces: bool = False
    """start a new process for a dead rank when no spare is free"""
    max_replacements: int = 16
    """how many dead ranks this agent replaces before it believes that starting again is no remedy"""
    max_restarts: int = 0
    """how often a job that failed as a whole is begun anew, for its script to go on from a checkpoint"""
    joins: bool = False
    """this node comes late: its processes are spares for a job that is running"""
    meeting_points: tuple[str, ...] = ()
    """"host:port" of agents to meet at: of the first one, or for a late node of any that lives"""
    timeouts: Timeouts = dataclasses.field(default_factory=Timeouts)
    """what follows from --failure-timeout-s"""
    log_dir: Path | None = None
    """where each rank's output goes, beside the terminal"""
    result_dir: Path | None = None
    """where the agent leaves the job's exit status, in a file named after its node"""
    is_leashed: bool = False
    """the kernel kills the workers when this agent is killed"""
    witness: str = ""
    """what breaks an exact tie of a partition, passed on to the ranks; empty: nothing does"""
    secret: str = ""
    """hex; what agents and ranks of this job prove each other to know; empty: one is drawn (one node only)"""

    def __post_init__(self) -> None:
        _check(self.num_nodes >= 1, "--nnodes must be at least 1", self.num_nodes)
        _check(
            0 <= self.node_rank < self.num_nodes, f"--node-rank must be below --nnodes={self.num_nodes}", self.node_rank
        )
        _check(self.workers_per_node >= 0, "--nproc-per-node must not be negative", self.workers_per_node)
        _check(self.num_spares >= 0, "--spares must not be negative", self.num_spares)
        _check(self.max_replacements >= 0, "--max-replacements must not be negative", self.max_replacements)
        _check(self.max_restarts >= 0, "--max-restarts must not be negative", self.max_restarts)
        _check(self.workers_per_node + self.num_spares > 0, "this node would start nothing: --nproc-per-node", 0)
        _check(self.min_ranks >= 1, "--min-ranks must be at least 1", self.min_ranks)
        if self.num_nodes == 1 and not self.joins:
            what = f"--min-ranks must be at most --nproc-per-node={self.workers_per_node}"
            _check(self.min_ranks <= self.workers_per_node, what, self.min_ranks)
        _check(all(map(_is_endpoint, self.meeting_points)), "--master must be HOST:PORT", ",".join(self.meeting_points))
        if (self.num_nodes > 1 or self.joins) and not self.meeting_points:
            raise ValueError("several nodes need --master HOST:PORT, where the first agent listens")
        if self.meeting_points and not self.secret:
            raise ValueError(
                "several nodes need a secret that strangers do not know, the same on all: "
                'export ELASWAVE_SECRET="$(openssl rand -hex 32)" before starting the agents'
            )
        _check(_is_hex(self.secret), "ELASWAVE_SECRET must be an even number of hex digits", self.secret)


def parse(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> Options:
    """Options from a command line.

    Raises:
        SystemExit: 0 for --help; 2 for wrong usage, which has been explained on standard error.
    """
    parser = _parser()
    words = parser.parse_args(arguments)
    try:
        options = Options(
            command=(words.script, *words.arguments),
            is_module=words.module,
            num_nodes=words.nnodes,
            node_rank=words.node_rank,
            workers_per_node=_num_workers(words.nproc_per_node),
            min_ranks=words.min_ranks,
            num_spares=words.spares,
            replaces=words.replace,
            max_replacements=words.max_replacements,
            max_restarts=words.max_restarts,
            joins=words.join,
            meeting_points=tuple(filter(None, words.master.split(","))),
            timeouts=Timeouts(words.failure_timeout_s),
            log_dir=words.log_dir,
            result_dir=words.result_dir,
            is_leashed=words.leash,
            witness=words.witness,
            secret=environment.get("ELASWAVE_SECRET", ""),
        )
        _check(options.is_module or Path(words.script).exists(), "SCRIPT must be a file that is there", words.script)
        return options
    except ValueError as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="elastates run",
        description="Run a training script on every rank; the ranks that live go on when others die.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--nproc-per-node", default="1", metavar="N", help="ranks on this node, or 'gpu': one for each GPU (1)")
    add("--nnodes", type=int, default=1, metavar="N", help="agents of this job, one on each node (1)")
    add("--node-rank", type=int, default=0, metavar="N", help="which of them this is (0)")
    add(
        "--master",
        "--rdzv",
        default="",
        metavar="HOST:PORT[,...]",
        help="where the first agent listens and the others find it; a node that comes late may name any living agents",
    )
    add("--join", action="store_true", help="join a running job: this node's processes are spares for its dead ranks")
    add("--min-ranks", type=int, default=1, metavar="N", help="end the job when fewer ranks are left (1)")
    add(
        "--spares",
        type=int,
        default=0,
        metavar="N",
        help="processes that wait here, torch imported, for a dead rank (0)",
    )
    add("--replace", action="store_true", help="start a new process for a dead rank when no spare is free")
    add("--max-replacements", type=int, default=16, metavar="N", help="dead ranks replaced on this node at most (16)")
    add(
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="begin anew, from a checkpoint that the script finds, when the job as a whole has failed (0)",
    )
    add(
        "--failure-timeout-s",
        type=float,
        default=30.0,
        metavar="S",
        help="silence after which a process counts as failed; all other times follow from it and are printed (30)",
    )
    add("--log-dir", type=Path, metavar="DIR", help="write each rank's output to files there, and here with its rank")
    add("--result-dir", type=Path, metavar="DIR", help="leave the exit status there, in a file node-N")
    add(
        "--leash",
        action="store_true",
        help="workers are killed with this agent (they would go on), for resource managers that know only the agent",
    )
    add(
        "--witness",
        default="",
        metavar="WHAT",
        help="breaks an exact tie of a partition: a lock file that all nodes see, or 'store', that of the first agent",
    )
    add("--module", "-m", action="store_true", help="SCRIPT is a module's name, as with python -m")
    add("script", metavar="SCRIPT", help="Python program to run on every rank")
    add("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")
    return parser


def _num_workers(text: str) -> int:
    if text == "gpu":
        import torch

        num_gpus = int(torch.cuda.device_count())
        _check(num_gpus > 0, "--nproc-per-node gpu needs a GPU that torch can use on this node: a number instead", 0)
        return num_gpus
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"--nproc-per-node must be a number or 'gpu', got {text!r}") from None


def _check(is_right: bool, what: str, got: object) -> None:
    if not is_right:
        raise ValueError(f"{what}, got {got!r}")


def _is_endpoint(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdigit() and int(port) < 2**16


def _is_hex(text: str) -> bool:
    try:
        return bytes.fromhex(text) is not None
    except ValueError:
        return False
