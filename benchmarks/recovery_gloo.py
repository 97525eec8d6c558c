"""What gloo needs to go on with one member less, by torch's own `reconfigure` (2.15): a part of benchmarks/recovery.py.

    python benchmarks/recovery_gloo.py --size 4

Prints one line of JSON: for each member that stays, milliseconds for `reconfigure` and for that with the first
all-reduce of 1 MiB behind it. Nobody dies and nothing is pending, which is the easier case. Needs nothing but torch, so
that any Python with a new enough one can run it; handles go through a store, which is not counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

ELEMENTS = (1 << 20) // 4
WAIT_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4, help="members at first (default: 4)")
    parser.add_argument("--check", action="store_true", help="end with 0 if this torch can do it, do nothing")
    options = parser.parse_args()
    if not hasattr(dist, "_reconfigure"):
        raise SystemExit(f"torch {torch.__version__} has no reconfigure: 2.15 has")
    if not options.check:
        print(json.dumps(reconfigure_once(options.size)))


def reconfigure_once(size: int) -> list[dict[str, float]]:
    """A new group that loses its last member; what each of the others measured."""
    context = multiprocessing.get_context("fork")
    pairs = [context.Pipe(duplex=False) for _ in range(size)]
    with tempfile.TemporaryDirectory() as directory:
        arguments = [(rank, size, f"{directory}/store", theirs) for rank, (_, theirs) in enumerate(pairs)]
        members = [context.Process(target=be_member, args=these) for these in arguments]
        for member in members:
            member.start()
        try:
            return [expect(mine) for mine, _ in pairs[:-1]]
        finally:
            for member in members:
                member.kill()
                member.join()


def be_member(rank: int, size: int, store_file: str, pipe: Connection) -> None:
    """In the child: a group of all, then one without the last."""
    torch.set_num_threads(1)
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo"}
    store = dist.FileStore(store_file, size)
    new: Any = dist  # torch 2.13, by which types are checked, has no such names
    new.init_process_group("gloo", store=store, rank=rank, world_size=size, enable_reconfigure=True)
    for number, num_members in enumerate((size, size - 1), start=1):
        if rank < num_members:
            store.set(f"{number}/{rank}", new._get_reconfigure_handle())
            handles = [store.get(f"{number}/{other}").decode() for other in range(num_members)]
            row = reconfigure(number, handles)
    pipe.send(row)


def reconfigure(number: int, handles: list[str]) -> dict[str, float]:
    """Take up the new list of members and sum once; milliseconds."""
    value = torch.ones(ELEMENTS)
    new: Any = dist
    begun_s = time.monotonic()
    new._reconfigure(uuid=number, handles=handles, timeout=timedelta(seconds=WAIT_S)).wait()
    edited_s = time.monotonic()
    dist.all_reduce(value)
    summed_s = time.monotonic()
    assert value[-1].item() == len(handles)
    return {"edit_ms": (edited_s - begun_s) * 1e3, "edit_and_first_sum_ms": (summed_s - begun_s) * 1e3}


def expect(pipe: Connection) -> Any:
    """What a member says."""
    if not pipe.poll(WAIT_S):
        raise SystemExit(f"a member said nothing within {WAIT_S:g} s")
    return pipe.recv()


if __name__ == "__main__":
    main()
