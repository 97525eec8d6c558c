"""A source of tensors: what there is, by name, and a stream of the values in bounded memory.

Every conversion is a source on one side and a writer on the other; neither knows the other's format.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from datastates.bulk import without_gc
from datastates.dtypes import dtype_name, dtype_of
from datastates.plan import per_rank_name
from datastates.reader import CheckpointReader
from oneflow_sbp import Box

PIECE_BYTES = 64 << 20
"""How much of the values is in memory at a time; more only where one row of a tensor is larger."""
Progress = Callable[[int, int], None]
"""(bytes done, bytes in all)."""


class Entry(NamedTuple):
    """What is known of a tensor before its values are."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


Stream = Iterator[tuple[str, torch.Tensor]]


@dataclass(frozen=True)
class Source:
    """Named tensors whose values come as a stream."""

    entries: Mapping[str, Entry]
    stream: Callable[[Sequence[str]], Stream]
    """For each of the given names, in that order, consecutive pieces of its values: host tensors of the entry's dtype
    that follow each other in row-major order. An empty tensor may have no piece."""

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries.values())


def names_for_rank(reader: CheckpointReader, rank: int = 0) -> dict[str, str]:
    """Every name under which rank ``rank`` restores a tensor -> the stored name; tied names included."""
    if not 0 <= rank < reader.manifest.num_ranks:
        raise ValueError(f"{reader.path} was saved by {reader.manifest.num_ranks} ranks, there is no rank {rank}")
    stored = {name: name for name in reader.names() if not name.startswith("per_rank.")}
    stored |= {alias: name for alias, name in reader.manifest.aliases.items() if not alias.startswith("per_rank.")}
    own = per_rank_name(rank, "")
    stored |= {name.removeprefix(own): name for name in reader.names() if name.startswith(own)}
    stored |= {a.removeprefix(own): name for a, name in reader.manifest.aliases.items() if a.startswith(own)}
    return stored


def ties_of(reader: CheckpointReader, names: Iterable[str], rank: int = 0) -> dict[str, str]:
    """Those of ``names`` that are further names of one tensor -> the first of its names."""
    stored = names_for_rank(reader, rank)
    first: dict[str, str] = {}
    return {name: known for name in names if (known := first.setdefault(stored[name], name)) != name}


def checkpoint_source(reader: CheckpointReader, only: Sequence[str] = (), rank: int = 0) -> Source:
    """The tensors of a checkpoint as rank ``rank`` restores them.

    Args:
        reader: the checkpoint.
        only: name patterns (``model.*``); all if empty.
        rank: whose values, of those that every rank has of its own.

    Raises:
        ValueError: a pattern selects nothing.
    """
    stored = names_for_rank(reader, rank)
    for pattern in only:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in stored):
            raise ValueError(f"no tensor of {reader.path} matches {pattern!r}; its names are like {_examples(stored)}")
    chosen = {name: of for name, of in stored.items() if not only or any(fnmatch.fnmatchcase(name, p) for p in only)}
    return _reading(reader, chosen)


def stored_source(reader: CheckpointReader) -> Source:
    """All tensors of a checkpoint under their stored names, those of every rank included."""
    return _reading(reader, {name: name for name in reader.names()})


def _reading(reader: CheckpointReader, chosen: Mapping[str, str]) -> Source:
    infos = {name: reader.info(stored) for name, stored in chosen.items()}
    entries = {name: Entry(dtype_of(info.dtype), info.shape) for name, info in infos.items()}

    def stream(names: Sequence[str]) -> Stream:
        for batch in batches(names, entries):
            if len(batch) > 1 or entries[batch[0]].nbytes <= PIECE_BYTES:
                values = reader.read_many({chosen[name]: None for name in batch})
                yield from ((name, values[chosen[name]]) for name in batch)
            else:
                (name,) = batch
                for box in row_boxes(entries[name]):
                    yield name, reader.read(chosen[name], box)

    return Source(entries, stream)


def renamed(source: Source, names: Mapping[str, str]) -> Source:
    """Only the tensors that ``names`` lists (new name -> name in ``source``), each once, under their new names."""
    new_of = {old: new for new, old in names.items()}

    def stream(wanted: Sequence[str]) -> Stream:
        for old, piece in source.stream([names[name] for name in wanted]):
            yield new_of[old], piece

    return Source({new: source.entries[old] for new, old in names.items()}, stream)


def cast(source: Source, dtype: torch.dtype, kept: Collection[str] = ()) -> Source:
    """Floating-point tensors in another type; integers, booleans, complex numbers and those of ``kept`` as they are.

    Raises:
        ValueError: ``dtype`` is none of floating-point numbers, so that most of every value would be lost.
    """
    if not dtype.is_floating_point:
        raise ValueError(f"cannot cast to {dtype_name(dtype)}: expected a floating-point type, such as bfloat16")

    def target(name: str, entry: Entry) -> Entry:
        return Entry(dtype, entry.shape) if entry.dtype.is_floating_point and name not in kept else entry

    entries = {name: target(name, entry) for name, entry in source.entries.items()}

    def stream(names: Sequence[str]) -> Stream:
        for name, piece in source.stream(names):
            yield name, piece.to(entries[name].dtype)

    return Source(entries, stream)


@without_gc()
def batches(names: Sequence[str], entries: Mapping[str, Entry]) -> list[list[str]]:
    """Consecutive names in groups of at most :data:`PIECE_BYTES`; a larger tensor is a group of its own."""
    groups: list[list[str]] = []
    room = 0
    for name in names:
        room -= entries[name].nbytes
        if room < 0 or not groups:
            groups.append([])
            room = PIECE_BYTES - entries[name].nbytes
        groups[-1].append(name)
    return groups


def row_boxes(entry: Entry) -> Iterator[Box]:
    """Boxes of whole rows, of about :data:`PIECE_BYTES`, that make up the tensor."""
    if not entry.shape or not entry.nbytes:
        yield Box.whole(entry.shape)
        return
    rows = max(1, PIECE_BYTES // (entry.nbytes // entry.shape[0]))
    whole = Box.whole(entry.shape)
    for begin in range(0, entry.shape[0], rows):
        yield whole.rows(begin, min(begin + rows, entry.shape[0]))


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of the values in row-major order."""
    host = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return host.reshape(-1).view(torch.uint8).numpy().data if host.numel() else memoryview(b"")


def _examples(names: Mapping[str, str]) -> str:
    return ", ".join(list(names)[:3]) or "(there are none)"
