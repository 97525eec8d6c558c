"""Which ranks hang, and which of them are at fault: pure rules over progress marks.

A rank is *silent* when its training thread made no mark for the failure timeout, inside a step, after its first
committed one, outside ``paused()`` and without a debugger on it. When one rank hangs, all that wait for it fall silent
in the same moment. So the silent ones are told first (a Hang event, upon which a group that can leave its wait does
so, and makes a mark); who makes none within the answer time is at fault, and is killed.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Collection, Mapping
from pathlib import Path

from elaswave.marks import Marks
from elaswave.timeouts import Timeouts

SLOW_RATIO = 1.5  # a rank whose own work takes so many times the median of all ranks is reported as a straggler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suspect:
    """A silent rank."""

    since_ns: int
    """when it was found silent"""
    marked_at_ns: int
    """its last mark before"""


def is_armed(marks: Marks, *, is_traced: bool) -> bool:
    """Whether silence of this rank means anything now."""
    return marks.is_inside and marks.num_commits > 0 and not marks.is_paused and not is_traced


def is_silent(marks: Marks, *, now_ns: int, is_traced: bool, timeouts: Timeouts) -> bool:
    """Whether a rank must be suspected of hanging."""
    silent_s = (now_ns - marks.marked_at_ns) / 1e9
    return is_armed(marks, is_traced=is_traced) and silent_s >= timeouts.failure_timeout_s


def has_answered(suspect: Suspect, marks: Marks, *, is_traced: bool) -> bool:
    """Whether a suspect turned out to be alive: it made a mark, or somebody debugs it."""
    return marks.marked_at_ns != suspect.marked_at_ns or not is_armed(marks, is_traced=is_traced)


def find_at_fault(
    suspects: Mapping[int, Suspect],
    *,
    now_ns: int,
    timeouts: Timeouts,
    silent: Collection[int],
    running: Collection[int],
) -> list[int]:
    """Which ranks are to be killed now.

    Once others of the job have answered, every silent rank whose answer time is over. If nobody has, their group cannot
    leave its wait and they cannot be told apart: after twice the time the one whose last mark is oldest. Its death
    frees the others, or, if it was not the one, they stay silent and the next is taken: such a job never ends by
    itself.

    Args:
        suspects: silent ranks of this node.
        silent: silent ranks of the whole job.
        running: running ranks of the whole job.
    """
    others_live = bool(set(running) - set(silent)) or len(running) == 1
    answer_ns = timeouts.hang_answer_s * 1e9 * (1 if others_live else 2)
    late = [rank for rank, suspect in suspects.items() if now_ns - suspect.since_ns >= answer_ns]
    if others_live or not late:
        return late
    oldest = min(suspects, key=lambda rank: suspects[rank].marked_at_ns)
    return [oldest] if oldest in late else []


def straggler_scores(median_s: Mapping[int, float]) -> dict[int, float]:
    """Rank -> its median own time per step over the median of all ranks; 1 is normal, 2 twice as slow."""
    known = {rank: time_s for rank, time_s in median_s.items() if time_s > 0}
    middle_s = statistics.median(known.values()) if known else 0.0
    return {rank: time_s / middle_s for rank, time_s in known.items()}


def is_traced(pid: int) -> bool:
    """Whether a debugger is attached to a process."""
    try:
        return "\nTracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has ended
        return False


def is_stopped(pid: int) -> bool:
    """Whether a process is suspended by SIGSTOP or the like: it can dump no stacks."""
    try:
        return "\nState:\tT" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
