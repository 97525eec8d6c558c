"""Random number generators that are objects: of torch on any device, of NumPy (new and legacy), of Python."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from datastates.providers.base import Context, Saved, SectionBuilder, StateProvider
from datastates.typed_json import encode


class GeneratorProvider(StateProvider):
    """Stored inline with the Python state, which is every rank's own; restored in place, by whoever holds it."""

    handles = (torch.Generator, np.random.Generator, np.random.BitGenerator, np.random.RandomState, random.Random)
    applies_last = True  # whoever holds it may draw from it while it takes its own state back

    def collect(self, value: Any, out: SectionBuilder) -> None:
        name = out.section.name
        out.section.python = lambda: encode({"kind": _kind(value), "state": _read(value)}, name)
        out.section.guard = lambda: True

    def prepare(self, value: Any, name: str, context: Context, saved: Saved) -> None:
        stored = saved.python(name)
        if stored is not None and stored["kind"] != _kind(value):
            raise ValueError(f"{name} is a {_kind(value)} generator, the checkpoint's is a {stored['kind']} one")

    def apply(self, value: Any, name: str, context: Context, saved: Saved) -> Any:
        stored = saved.python(name)
        if stored is not None:
            _write(value, saved.decode(stored["state"]))
        return value


def _kind(generator: Any) -> str:
    """What a state fits: the library, and NumPy's bit generator or torch's device."""
    if isinstance(generator, torch.Generator):
        return f"torch {generator.device.type}"
    if isinstance(generator, random.Random):
        return "python"
    return f"numpy {type(_bits(generator)).__name__}"


def _bits(generator: Any) -> Any:
    if isinstance(generator, np.random.BitGenerator):
        return generator
    return generator._bit_generator if isinstance(generator, np.random.RandomState) else generator.bit_generator


def _read(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    # The legacy interface keeps a second normal value of its own beside the bits.
    return generator.get_state(legacy=False) if isinstance(generator, np.random.RandomState) else _bits(generator).state


def _write(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        _bits(generator).state = state
