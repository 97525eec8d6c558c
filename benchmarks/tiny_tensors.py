"""Tens of thousands of 4 KB tensors, where the cost per tensor is everything: save until durable, load cold."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

from benchmarks.contenders.base import Contender
from benchmarks.files import remove_tree
from benchmarks.protocol import cold_restore, quiesce

TINY_BYTES = 4096
STEP = 0


@dataclass(frozen=True, kw_only=True)
class TinySample:
    """One contender, once, its first save in this process: nothing has been planned or cached before."""

    save_s: float
    load_s: float
    correct: bool


def measure(contender: Contender) -> TinySample:
    """Save until durable, change every tensor, load from a cold page cache; leaves no file behind."""
    contender.root.mkdir(parents=True)
    try:
        contender.open()
        with contextlib.closing(contender):
            contender.state.remember()
            quiesce()
            start_s = time.perf_counter()
            pending = contender.save(STEP)
            pending.wait_safe()
            pending.wait_durable()
            save_s = time.perf_counter() - start_s
            contender.state.mutate()
            load_s, differences = cold_restore(contender, STEP)
    finally:
        remove_tree(contender.root)
    return TinySample(save_s=save_s, load_s=load_s, correct=not differences)
