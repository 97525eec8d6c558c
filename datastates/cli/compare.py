"""What differs between two checkpoints: tensors piece by piece, in bounded memory, and Python values."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from datastates.convert.source import Entry, Progress, stored_source
from datastates.dtypes import dtype_name
from datastates.reader import CheckpointReader

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MISSING = object()


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that is not the same in both."""

    name: str
    what: str
    """``only in A``, ``only in B``, ``type``, ``shape`` or ``values``."""
    a: str | None
    b: str | None
    """Element type and shape on either side."""
    num_elements: int = 0
    num_changed: int = 0
    """Elements whose bits differ."""
    max_abs: float = 0.0
    """Largest absolute difference among those where it is a finite number."""
    num_not_finite: int = 0
    """Changed elements whose difference is no finite number."""


@dataclass(frozen=True)
class PythonDifference:
    """A Python value that is not the same in both."""

    rank: int
    path: str
    a: str | None
    b: str | None
    """As typed JSON; ``None``: there is no such value."""


def tensor_differences(
    a: CheckpointReader, b: CheckpointReader, only: Sequence[str] = (), progress: Progress | None = None
) -> Iterator[TensorDifference]:
    """Differences in the order of names in ``a``, then what only ``b`` has."""
    of_a, of_b = stored_source(a), stored_source(b)
    chosen = [name for name in {**of_a.entries, **of_b.entries} if _selected(name, only)]
    alike = [name for name in chosen if of_a.entries.get(name) == of_b.entries.get(name)]
    total = sum(of_a.entries[name].nbytes for name in alike)
    changed = _changed_values(zip(of_a.stream(alike), of_b.stream(alike), strict=True), of_a.entries, total, progress)
    for name in chosen:
        entry_a, entry_b = of_a.entries.get(name), of_b.entries.get(name)
        if entry_a is None or entry_b is None:
            what = "only in B" if entry_a is None else "only in A"
            yield TensorDifference(name, what, _text(entry_a), _text(entry_b))
        elif entry_a != entry_b:
            what = "shape" if entry_a.dtype == entry_b.dtype else "type"
            yield TensorDifference(name, what, _text(entry_a), _text(entry_b))
    yield from changed


def _changed_values(
    pairs: Iterator[tuple[tuple[str, torch.Tensor], tuple[str, torch.Tensor]]],
    entries: Mapping[str, Entry],
    total: int,
    progress: Progress | None,
) -> Iterator[TensorDifference]:
    done = 0
    current: TensorDifference | None = None
    for (name, piece_a), (_, piece_b) in pairs:
        if current is not None and current.name != name:
            yield current
            current = None
        found = compare_values(name, piece_a, piece_b)
        if found is not None:
            text = _text(entries[name])
            current = _sum(current or TensorDifference(name, "values", text, text, entries[name].numel), found)
        done += piece_a.nbytes
        if progress is not None:
            progress(done, total)
    if current is not None:
        yield current


def compare_values(name: str, a: torch.Tensor, b: torch.Tensor) -> TensorDifference | None:
    """How two tensors of one type and shape differ, bit by bit; ``None``: they do not."""
    bits_a, bits_b = _bits(a), _bits(b)
    if torch.equal(bits_a, bits_b):
        return None
    changed = bits_a != bits_b
    if changed.dim() > 1:
        changed = changed.any(dim=1)
    distance = (_wide(a.reshape(-1)[changed]) - _wide(b.reshape(-1)[changed])).abs()
    finite = distance.isfinite()
    return TensorDifference(
        name,
        "values",
        None,
        None,
        num_changed=int(changed.sum()),
        max_abs=float(distance[finite].max()) if bool(finite.any()) else 0.0,
        num_not_finite=int((~finite).sum()),
    )


def _sum(total: TensorDifference, part: TensorDifference) -> TensorDifference:
    return TensorDifference(
        total.name,
        total.what,
        total.a,
        total.b,
        total.num_elements,
        total.num_changed + part.num_changed,
        max(total.max_abs, part.max_abs),
        total.num_not_finite + part.num_not_finite,
    )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """[elements] integers, or [elements, bytes] where no integer is as wide."""
    flat = tensor.reshape(-1)
    if tensor.dtype.itemsize in _INTEGERS:
        return flat.view(_INTEGERS[tensor.dtype.itemsize])
    return flat.view(torch.uint8).reshape(-1, tensor.dtype.itemsize)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def python_differences(a: CheckpointReader, b: CheckpointReader) -> Iterator[PythonDifference]:
    """Differences between the Python states of the ranks that both have, rank by rank."""
    for rank in range(min(a.manifest.num_ranks, b.manifest.num_ranks)):
        yield from _walk(rank, "", a.encoded_python(rank), b.encoded_python(rank))


def _walk(rank: int, path: str, a: Any, b: Any) -> Iterator[PythonDifference]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {**a, **b}:
            yield from _walk(rank, f"{path}.{key}" if path else key, a.get(key, _MISSING), b.get(key, _MISSING))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, (item_a, item_b) in enumerate(zip(a, b, strict=True)):
            yield from _walk(rank, f"{path}.{index}", item_a, item_b)
    elif a is _MISSING or b is _MISSING or a != b or type(a) is not type(b):
        yield PythonDifference(rank, path, _json(a), _json(b))


def _json(value: Any) -> str | None:
    return None if value is _MISSING else json.dumps(value)


def _selected(name: str, only: Sequence[str]) -> bool:
    return not only or any(fnmatch.fnmatchcase(name, pattern) for pattern in only)


def _text(entry: Entry | None) -> str | None:
    return None if entry is None else f"{dtype_name(entry.dtype)}{list(entry.shape)}"
