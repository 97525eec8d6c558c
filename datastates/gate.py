"""The gate: before any optimizer writes, it waits until what it will write has been copied.

One global hook of torch serves every optimizer of the process, fused ones and those no checkpointer knows included.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, Protocol

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook


class Gated(Protocol):
    """Somebody with checkpoints in flight."""

    def _before_step(self, optimizer: torch.optim.Optimizer) -> None: ...


_gated: weakref.WeakSet[Any] = weakref.WeakSet()
_lock = threading.Lock()
_hook: Any = None


def watch_optimizers(gated: Gated) -> None:
    """Call ``gated._before_step(optimizer)`` before every optimizer step of this process, for as long as it lives."""
    global _hook
    with _lock:
        _gated.add(gated)
        if _hook is None:
            _hook = register_optimizer_step_pre_hook(_before_step)


def unwatch_optimizers(gated: Gated) -> None:
    """The inverse of :func:`watch_optimizers`. Idempotent."""
    with _lock:
        _gated.discard(gated)


def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for gated in list(_gated):
        gated._before_step(optimizer)
