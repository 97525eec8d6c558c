"""Which acts, when, to whom: a pure function of a seed and a few settings, so that a run can be had again."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from elaswave.chaos.acts import ACTS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """When acts happen: after a time that is drawn around a mean, every so many steps, or in a phase."""

    mean_s: float = 0.0
    """mean time between two acts, exponentially distributed"""
    every_steps: int = 0
    """committed steps between two acts; needs timelines"""
    phase: str = ""
    """strike while the victim is in this phase, after the time is up; needs timelines"""

    def __post_init__(self) -> None:
        if (self.mean_s > 0) == (self.every_steps > 0):
            raise ValueError("say either the mean time between two acts or the number of steps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """One act to come."""

    number: int
    kind: str
    wait_s: float
    """after the one before"""
    wait_steps: int
    phase: str
    pick: float
    """in [0, 1): which of the ranks that live then, in their order"""
    rank: int | None
    """who it is, if that is not left to chance"""
    lasts_s: float

    def victim(self, living: Sequence[int]) -> int:
        """The rank that is struck, of those that live; the lowest, if the one that was named is gone."""
        if self.rank is None:
            return living[int(self.pick * len(living))]
        return self.rank if self.rank in living else living[0]


def make_plan(
    num_acts: int, *, seed: int, kinds: Sequence[str], schedule: Schedule, lasts_s: float, rank: int | None = None
) -> list[Planned]:
    """The acts of a run.

    Args:
        num_acts: how many.
        seed: equal seeds give equal plans.
        kinds: drawn from with equal chances.
        schedule: when.
        lasts_s: mean duration of those that have an end, seconds, exponentially distributed.
        rank: the only victim while it lives; ``None``: drawn.

    Raises:
        ValueError: an unknown kind; no duration.
    """
    if not lasts_s > 0:
        raise ValueError(f"--lasts-s must be positive, got {lasts_s:g}")
    unknown = sorted(set(kinds) - ACTS.keys())
    if unknown or not kinds:
        raise ValueError(f"unknown kinds {unknown}; known: {', '.join(ACTS)}")
    draw = random.Random(seed)
    return [
        Planned(
            number=number,
            kind=draw.choice(list(kinds)),
            wait_s=draw.expovariate(1 / schedule.mean_s) if schedule.mean_s else 0.0,
            wait_steps=schedule.every_steps,
            phase=schedule.phase,
            pick=draw.random(),
            rank=rank,
            lasts_s=draw.expovariate(1 / lasts_s),
        )
        for number in range(num_acts)
    ]
