"""A share of a core for every process of a job, so that a few cores look like as many slow machines."""

from __future__ import annotations

import os
import time
from pathlib import Path

from elaswave.chaos.acts import ACTS, End, Surroundings, limit_cpu
from elaswave.chaos.targets import Target, processes_of

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Quotas:
    """The quotas of one job's processes; given back by ``close``, once the job has ended."""

    def __init__(self, cores: float) -> None:
        self.cores = cores
        self.how = "cgroup"
        """or "duty cycle", where cgroups cannot be written: stopped and continued a hundred times a second"""
        self._ends: dict[int, End] = {}

    def limit(self, ranks: list[Target]) -> None:
        """See to it that all ranks of a job have their quota; with cgroups its spares have one as well."""
        for target in ranks:
            self._limit(target.pid, target)
        for pid in processes_of(ranks[0].job):
            self._limit(pid, None)

    def _limit(self, pid: int, target: Target | None) -> None:
        if pid in self._ends:
            return
        end = limit_cpu(pid, self.cores)
        if end is None and target is not None:
            self.how = "duty cycle"
            end = ACTS["slow"](target, Surroundings(cpu_share=self.cores))
        if end is not None:
            self._ends[pid] = end

    def close(self) -> None:
        """Give back what is left of them. Idempotent."""
        while self._ends:
            self._ends.popitem()[1]()


def used_cpu_s(pids: list[int]) -> float:
    """CPU time that living processes have used, their dead ones not counted."""
    return sum(map(_ticks_of, pids)) / TICKS_PER_S


def are_idle(pids: list[int], over_s: float = 0.5) -> bool:
    """Whether these processes together need less than a twentieth of a core; takes ``over_s``."""
    before_s = used_cpu_s(pids)
    time.sleep(over_s)
    return used_cpu_s(pids) - before_s < over_s / 20


def _ticks_of(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0
    return int(fields[11]) + int(fields[12])
