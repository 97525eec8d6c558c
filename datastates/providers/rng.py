"""The global random number generators of Python, NumPy, torch and every CUDA device: each rank has its own."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from datastates.providers.base import Context, Saved, SectionBuilder, StateProvider
from datastates.typed_json import encode


class RngState:
    """Stands for the generators of this process; see :func:`rng_state`."""


def rng_state() -> RngState:
    """Put this into the state to checkpoint and restore the global generators of the process."""
    return RngState()


class RngProvider(StateProvider):
    """Stored inline with the Python state, which is every rank's own."""

    handles = (RngState,)
    applies_last = True  # a data loader, say, may draw from these generators while it takes its own state back

    def collect(self, value: RngState, out: SectionBuilder) -> None:
        name = out.section.name
        out.section.python = lambda: encode(read_generators(), name)
        out.section.guard = lambda: True

    def apply(self, value: RngState, name: str, context: Context, saved: Saved) -> RngState:
        stored = saved.python(name)
        if stored is not None:
            write_generators(saved.decode(stored))
        return value


def read_generators() -> dict[str, Any]:
    """The states of all of them, as a copy."""
    version, words, gauss = random.getstate()
    return {
        "python": [version, np.array(words, dtype=np.uint32), gauss],
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def write_generators(state: dict[str, Any]) -> None:
    """Give them the states that :func:`read_generators` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device, item in enumerate(state["cuda"][:devices]):
        torch.cuda.set_rng_state(item, device)
