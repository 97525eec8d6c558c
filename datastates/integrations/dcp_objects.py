"""What ``torch.distributed.checkpoint`` calls bytes: values that are no tensors, as typed JSON if that loses nothing.

DCP pickles them and unpickles them on load. Here a value of plain types is stored as typed JSON, which runs no code and
which people can read; anything else stays the bytes that DCP made of it (kind ``torch_save``).
"""

from __future__ import annotations

import base64
import datetime
import io
import pathlib
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem

from datastates.typed_json import decode, encode

Json = Any
_EXACT_LEAVES = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    bytearray,
    torch.dtype,
    torch.device,
    torch.Size,
    datetime.datetime,
    pathlib.PosixPath,
)
_EXACT_CONTAINERS = (list, tuple, set, frozenset)


def encode_item(planner: SavePlanner, item: WriteItem) -> Json:
    """The stored form of the value that ``item`` stands for."""
    if _shows_values(planner):
        value = planner.lookup_object(item.index)  # type: ignore[attr-defined]
        if is_exact(value):
            return encode(value, item.index.fqn)
    raw = planner.resolve_data(item)
    assert isinstance(raw, io.BytesIO), "a planner resolves a BYTE_IO item to a BytesIO"
    return {"$": "torch_save", "v": base64.b64encode(raw.getbuffer()).decode()}


def _shows_values(planner: SavePlanner) -> bool:
    """Whether the bytes are what the default planner makes of the value, so that the value may stand in for them."""
    if not isinstance(planner, DefaultSavePlanner):
        return False
    kind = type(planner)
    default = DefaultSavePlanner
    return kind.resolve_data is default.resolve_data and kind.transform_object is default.transform_object


def is_exact(value: object, depth: int = 50) -> bool:
    """Whether typed JSON gives back ``value`` with all its types; enumerations, subclasses and tensors it does not."""
    kind = type(value)
    if kind in _EXACT_LEAVES or depth == 0:
        return depth > 0
    if kind in _EXACT_CONTAINERS:
        return all(is_exact(item, depth - 1) for item in value)  # type: ignore[attr-defined]
    if kind is dict:
        return all(is_exact(item, depth - 1) for pair in value.items() for item in pair)  # type: ignore[attr-defined]
    if isinstance(value, np.ndarray | np.generic):
        return kind in (np.ndarray, value.dtype.type) and not (value.dtype.hasobject or value.dtype.fields)
    return False


def as_torch_save(stored: Json, allow_pickle: bool) -> io.BytesIO:
    """The bytes that a load planner expects, which it will give to ``torch.load``.

    Raises:
        ValueError: a value stored with ``datastates.pickled``, without ``allow_pickle``.
    """
    if isinstance(stored, dict) and stored.get("$") == "torch_save":
        return io.BytesIO(base64.b64decode(stored["v"]))
    stream = io.BytesIO()
    torch.save(decode(stored, allow_pickle=allow_pickle), stream)
    stream.seek(0)
    return stream
