"""Tens of thousands of 4 KB tensors, where the cost per tensor is everything: save until durable, load cold."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

from benchmarks.contenders.base import Contender
from benchmarks.files import remove_tree
from benchmarks.protocol import cold_restore, quiesce

TINY_BYTES = 4096
FIRST_STEP, STEP = 0, 1


@dataclass(frozen=True, kw_only=True)
class TinySample:
    """One contender, once."""

    first_save_s: float
    """The warm-up: what a library plans, caches or allocates once is in here."""
    save_s: float
    """The next save of the same tensors, as at every later step."""
    load_s: float
    correct: bool


def measure(contender: Contender) -> TinySample:
    """Save twice until durable, change every tensor, load from a cold page cache; leaves no file behind."""
    contender.root.mkdir(parents=True)
    try:
        contender.open()
        with contextlib.closing(contender):
            first_save_s = _save(contender, FIRST_STEP)
            contender.state.mutate()
            contender.state.remember()
            remove_tree(contender.path_of(FIRST_STEP))
            save_s = _save(contender, STEP)
            contender.state.mutate()
            load_s, differences = cold_restore(contender, STEP)
    finally:
        remove_tree(contender.root)
    return TinySample(first_save_s=first_save_s, save_s=save_s, load_s=load_s, correct=not differences)


def _save(contender: Contender, step: int) -> float:
    quiesce()
    start_s = time.perf_counter()
    pending = contender.save(step)
    pending.wait_safe()
    pending.wait_durable()
    return time.perf_counter() - start_s
