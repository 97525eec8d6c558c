"""Plain values and containers of them, with tensors anywhere inside."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from datastates.providers.base import Context, Saved, SectionBuilder, StateProvider
from datastates.quantized import same_form
from datastates.typed_json import PLAIN_TYPES, Pickled, encode


class TreeProvider(StateProvider):
    """Dicts, lists and scalars; tensors inside are stored as tensors and restored in place."""

    handles = (dict, Pickled, *PLAIN_TYPES)
    exact = True  # a list with state_dict() and load_state_dict() is more than a list

    def collect(self, value: Any, out: SectionBuilder) -> None:
        encoded = encode(value, out.section.name, out.tensor)
        encoded = {"$": "none"} if encoded is None else encoded  # null would be as if it were not there
        out.section.python = lambda: encoded
        out.section.loads_afresh = True

    def apply(self, value: Any, name: str, context: Context, saved: Saved) -> Any:
        stored = saved.python(name)
        return value if stored is None else replace_content(value, saved.decode(stored))


def replace_content(value: Any, stored: Any) -> Any:
    """Make ``value`` equal to ``stored``, in place where its type allows; returns what stands for it now."""
    if value is stored:
        return value  # a tensor that was loaded in place
    if isinstance(value, Pickled):  # stays marked, or the next checkpoint would refuse what is inside
        value.value = stored
        return value
    if isinstance(value, dict) and isinstance(stored, dict):
        for key in [key for key in value if key not in stored]:
            del value[key]
        for key, item in stored.items():
            value[key] = replace_content(value[key], item) if key in value else item
        return value
    if isinstance(value, list) and isinstance(stored, list):
        value[:] = _replaced(value, stored)
        return value
    if type(value) is tuple and type(stored) is tuple:
        return tuple(_replaced(value, stored))
    if isinstance(value, np.ndarray) and isinstance(stored, np.ndarray):
        if (value.dtype, value.shape) != (stored.dtype, stored.shape) or not value.flags.writeable:
            return stored
        value[...] = stored
        return value
    if isinstance(value, torch.Tensor) and same_form(value, stored):
        return value.copy_(stored)
    if isinstance(value, enum.Enum) and not isinstance(stored, enum.Enum):
        return type(value)(stored)  # the live class gives the member back; none is taken from the checkpoint
    return stored


def _replaced(value: Sequence[Any], stored: Sequence[Any]) -> list[Any]:
    kept = [replace_content(a, b) for a, b in zip(value, stored, strict=False)]
    return [*kept, *stored[len(kept) :]]
