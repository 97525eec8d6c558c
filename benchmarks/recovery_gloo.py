"""What gloo needs to go on with one member less, by torch's own `reconfigure` (2.15): a part of benchmarks/recovery.py.

    python benchmarks/recovery_gloo.py --size 4

Prints one line of JSON: for each member that stays, milliseconds for `reconfigure` and for that with the first
all-reduce of 1 MiB behind it. Nobody dies and nothing is pending, which is the easier case. Needs nothing but torch, so
that any Python with a new enough one can run it; handles go through a store, which is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # after installed packages: ours may be one of them

import torch
import torch.distributed as dist

from benchmarks.members import WAIT_S, expect, members

ELEMENTS = (1 << 20) // 4


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
    with members(size, be_member) as (_, pipes):
        return [expect(pipe) for pipe in pipes[:-1]]


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


if __name__ == "__main__":
    main()
