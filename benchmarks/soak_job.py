"""The job of benchmarks/soak.py: sums whose right value anybody can compute, on a group that loses and gains members.

Every committed step is a line of JSON in SOAK_DIR/PID.steps.jsonl: the step, the epoch, the members by rank (their
pids) and the sum that was got. contribution(pid, step) is what a member adds. SOAK_WORK_S, 0 if it is not set: how long
a step takes before the sum.
"""

import json
import os
import struct
import time
from pathlib import Path

import torch
import torch.distributed as dist

import elaswave
from elaswave import timeline

ELEMENTS = 1000
PROGRESS = struct.Struct("<qq")  # committed, summed
WORK_S = float(os.environ.get("SOAK_WORK_S", "0"))


def contribution(pid: int, step: int) -> int:
    """What process ``pid`` adds to every element in step ``step``."""
    return (pid * 2654435761 + step * 40503) % 1_000_003


class Member:
    """One process; ``committed`` is the last step that all had the sum of."""

    def __init__(self, directory: Path) -> None:
        self.run = elaswave.join(backend="elastic")
        self.group = elaswave.ElasticGroup.of()
        self.committed = self.summed = -1  # at most one apart
        self.claim: dict[str, object] = {}
        self.lines = open(directory / f"{os.getpid()}.steps.jsonl", "a", buffering=1)  # noqa: SIM115
        if self.group.view:  # others were here before; what they said when they let us in
            self.committed = self.summed = furthest(self.group.view)

    def step(self) -> None:
        """Sum, make sure that all have the sum, write it down."""
        step = self.committed + 1
        self.run.progress(step, "begin")
        time.sleep(WORK_S)
        members = torch.zeros(self.run.num_ranks, dtype=torch.int64)
        members[self.run.rank] = os.getpid()
        value = torch.full((ELEMENTS,), contribution(os.getpid(), step), dtype=torch.int64)
        waiting = torch.tensor([self.group.waiting])
        with timeline.phase("all-reduce"):
            dist.all_reduce(members)
            dist.all_reduce(value)
            dist.all_reduce(waiting)
        low, high = value.min().item(), value.max().item()
        self.claim = {"step": step, "epoch": self.group.epoch, "members": members.tolist(), "low": low, "high": high}
        self.summed = step
        with timeline.phase("commit"):
            dist.barrier()
        self.commit()
        if waiting.item():
            self.recover()

    def commit(self) -> None:
        """Write down what was summed."""
        self.committed = self.summed
        held = {"fds": len(os.listdir("/proc/self/fd")), "threads": len(os.listdir("/proc/self/task"))}
        self.lines.write(json.dumps(self.claim | held) + "\n")
        self.run.progress(self.committed, "commit")
        timeline.note("committed", step=self.committed, rank=self.run.rank)

    def recover(self) -> None:
        """Go on with those who live and those who wait, behind the last step that counts."""
        view = self.run.recover(PROGRESS.pack(self.committed, self.summed))
        if furthest(view) > self.committed:
            self.commit()
        self.committed = self.summed = furthest(view)


def furthest(view: elaswave.View) -> int:
    """The last step that somebody may have committed: all who were there have its sum, and nothing further.

    Nobody commits before all have the sum; and whoever did so, and died before it could say so, has written it down.
    """
    return min(PROGRESS.unpack(payload)[1] for payload in view.payloads if payload)


def main() -> None:
    torch.set_num_threads(1)
    member = Member(Path(os.environ["SOAK_DIR"]))
    while True:
        try:
            member.step()
        except dist.DistBackendError as error:
            if elaswave.lost(error) is None:
                raise
            member.recover()


if __name__ == "__main__":
    main()
