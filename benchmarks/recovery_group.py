"""How long the survivors of a group need after a SIGKILL, nothing but the group around them: a part of recovery.py.

Processes all-reduce 1 MiB without pause; one of them is killed at a random moment. Milliseconds are counted from the
signal on each of the others: until the pending operation raised, until the survivors agreed on a view, until the first
right sum of the new group. Taking the view up is counted by itself.
"""

from __future__ import annotations

import os
import random
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

import elaswave
from benchmarks.members import expect, members
from benchmarks.spread import spread

ELEMENTS = (1 << 20) // 4
FIGURES = ("unblocked_ms", "agreed_ms", "edit_ms", "edit_and_first_sum_ms", "first_sum_ms")


def kill_one(size: int, draw: random.Random) -> list[dict[str, Any]]:
    """Kill one of ``size`` members of a new group; what each survivor measured."""
    with members(size, be_member) as (processes, pipes):
        for pipe in pipes:
            expect(pipe)
        time.sleep(draw.uniform(0.005, 0.05))  # a random moment of their all-reduces
        victim = draw.randrange(size)
        victim_pid = processes[victim].pid
        assert victim_pid is not None
        killed_s = time.monotonic()
        os.kill(victim_pid, signal.SIGKILL)
        told = [expect(pipe) for rank, pipe in enumerate(pipes) if rank != victim]
    return [
        {
            "unblocked_ms": (one["unblocked_s"] - killed_s) * 1e3,
            "agreed_ms": (one["agreed_s"] - killed_s) * 1e3,
            "edit_ms": (one["edited_s"] - one["agreed_s"]) * 1e3,
            "edit_and_first_sum_ms": (one["summed_s"] - one["agreed_s"]) * 1e3,
            "first_sum_ms": (one["summed_s"] - killed_s) * 1e3,
            "is_right": one["sum"] == size - 1,
        }
        for one in told
    ]


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and 95th percentile of every figure over all survivors of all kills."""
    found: dict[str, Any] = {"survivors": len(rows), "wrong_sums": sum(not row["is_right"] for row in rows)}
    for name in FIGURES:
        figures = spread([row[name] for row in rows])
        found |= {f"{name}_median": figures["median"], f"{name}_p95": figures["p95"]}
    return found


def worst_of(by_size: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Every figure of the group size that did worst at it."""
    names = next(iter(by_size.values()), {})
    return {name: max(found[name] for found in by_size.values()) for name in names if name != "survivors"}


def survive(pipe: Connection) -> None:
    """A member: sums until somebody dies, then goes on with the others."""
    group = elaswave.ElasticGroup.of()
    value = torch.ones(ELEMENTS)
    dist.all_reduce(value)
    pipe.send("ready")
    try:
        while True:
            dist.all_reduce(value.fill_(1))
    except dist.DistBackendError as error:
        unblocked_s = time.monotonic()
        if elaswave.lost(error) is None:
            raise
    group.revoke()
    view = group.agree()
    agreed_s = time.monotonic()
    group.edit(view)
    edited_s = time.monotonic()
    dist.all_reduce(value.fill_(1))
    summed_s = time.monotonic()
    times = {"unblocked_s": unblocked_s, "agreed_s": agreed_s, "edited_s": edited_s, "summed_s": summed_s}
    pipe.send({**times, "sum": value[0].item()})


def be_member(rank: int, size: int, store: str, pipe: Connection) -> None:
    """In the child."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    dist.init_process_group("elastic", store=dist.FileStore(store, size), rank=rank, world_size=size)
    survive(pipe)
    signal.pause()  # until the trial is over: leaving is not what is measured
