"""Carrying out a plan against a running job."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from elaswave.chaos.acts import ACTS, Surroundings
from elaswave.chaos.plan import Planned
from elaswave.chaos.targets import Target
from elaswave.timeline import read_milestones, read_phase

LOOK_S = 0.02
PHASE_LOOK_S = 0.0002


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
    """An act that was carried out, or was not because of ``problem``."""

    number: int
    kind: str
    rank: int
    pid: int
    at_s: float
    """of the monotonic clock"""
    until_s: float | None
    """when it was ended, if it has an end"""
    phase: str
    """what the victim was in the middle of, if it keeps a timeline"""
    problem: str = ""


def carry_out(
    plan: Iterable[Planned], find: Callable[[], list[Target]], around: Surroundings, over: threading.Event
) -> Iterator[Done]:
    """Do one act after the other; yields each when it is over, and stops when the job or ``over`` says so.

    Args:
        plan: what to do.
        find: the ranks that live now; raises ValueError when there are none any more.
        around: what acts need besides a process.
        over: set by somebody else to stop.
    """
    for planned in plan:
        try:
            target = _wait_for_turn(planned, find, over)
        except ValueError:  # the job has ended
            return
        if over.is_set():
            return
        yield _act(planned, target, around, over)


def _wait_for_turn(planned: Planned, find: Callable[[], list[Target]], over: threading.Event) -> Target:
    over.wait(planned.wait_s)
    if planned.wait_steps:
        goal = _last_step(find()) + planned.wait_steps
        while _last_step(find()) < goal and not over.wait(LOOK_S):
            pass
    while True:
        targets = {target.rank: target for target in find()}
        target = targets[planned.victim(sorted(targets))]
        while planned.phase and _phase(target) != planned.phase and target.is_alive and not over.wait(PHASE_LOOK_S):
            pass
        if target.is_alive or over.is_set():  # else it has ended by itself: another is struck
            return target


def _act(planned: Planned, target: Target, around: Surroundings, over: threading.Event) -> Done:
    done = Done(
        number=planned.number,
        kind=planned.kind,
        rank=target.rank,
        pid=target.pid,
        at_s=time.monotonic(),
        until_s=None,
        phase=_phase(target),
    )
    try:
        end = ACTS[planned.kind](target, around)
        if end is None:
            return done
        try:
            over.wait(planned.lasts_s)
        finally:
            end()
        return dataclasses.replace(done, until_s=time.monotonic())
    except (OSError, ValueError) as error:
        return dataclasses.replace(done, problem=f"{type(error).__name__}: {error}")


def _phase(target: Target) -> str:
    return read_phase(target.timeline / f"{target.pid}.phase") if target.timeline else ""


def _last_step(targets: list[Target]) -> int:
    """The last step that any of them has committed; -1 if none has."""
    steps = [-1]
    for target in targets:
        if target.timeline:
            milestones = read_milestones(target.timeline / f"{target.pid}.timeline.jsonl")
            steps += [one["step"] for one in milestones if one["what"] == "committed"]
    return max(steps)
