"""Who writes which box: a pure function of what every rank holds.

Every rank computes the same :class:`JobPlan` from the same descriptions, so nothing but the descriptions travels.
Replicas are written once, and the bytes are balanced over the ranks by cutting large replicated boxes along dim 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from oneflow_sbp import Box

CUT_BYTES = 1 << 20
"""Replicated boxes below this are never cut: a header entry costs more than the balance gains."""


class Held(NamedTuple):
    """One tensor as one rank holds it: the unit of the exchange between ranks."""

    name: str
    dtype: str
    """torch's name without the prefix: ``"float32"``."""
    itemsize_bytes: int
    shape: tuple[int, ...]
    """Global shape."""
    box: Box
    """The part this rank holds, contiguous in its memory."""
    group: int
    """What the gate waits for: ``-1`` copied when taken, else the index of the optimizer that writes it."""

    @property
    def nbytes(self) -> int:
        return self.box.numel * self.itemsize_bytes


@dataclass(frozen=True, slots=True)
class Piece:
    """A box that one rank writes: part (or all) of the ``index``-th tensor it holds."""

    index: int
    name: str
    """Where the manifest and the data file keep it; differs from the held name for values of one rank alone."""
    box: Box


@dataclass(frozen=True)
class JobPlan:
    """For every rank, the pieces it writes."""

    pieces: tuple[tuple[Piece, ...], ...]


class LayoutConflictError(ValueError):
    """Ranks hold one name with different shapes or dtypes."""


def per_rank_name(rank: int, name: str) -> str:
    """The stored name of a value that rank ``rank`` alone holds."""
    return f"per_rank.{rank}.{name}"


def plan_job(held: Sequence[Sequence[Held]], own: Sequence[frozenset[int]] | None = None) -> JobPlan:
    """Assign every distinct box to one of the ranks that hold it.

    Args:
        held: for each rank, what it holds; duplicate (name, box) pairs within one rank are not allowed.
        own: for each rank, indices into its ``held`` whose values differ from the lowest holder's and are therefore
            stored under a name of their own.

    Returns:
        A plan in which every box of the job is stored exactly once and the ranks' bytes differ as little as
        whole rows allow.

    Raises:
        LayoutConflictError: one name has two shapes or dtypes, or a part that no rank holds.
    """
    check_complete(held)
    if len(held) == 1:
        return JobPlan((tuple(Piece(i, tensor.name, tensor.box) for i, tensor in enumerate(held[0])),))
    check_agreement(held)
    own = own or [frozenset()] * len(held)
    loads = [0] * len(held)
    pieces: list[list[Piece]] = [[] for _ in held]
    holders: dict[tuple[str, Box], list[tuple[int, int]]] = {}
    for rank, tensors in enumerate(held):
        for index, tensor in enumerate(tensors):
            if index in own[rank]:
                pieces[rank].append(Piece(index, per_rank_name(rank, tensor.name), tensor.box))
                loads[rank] += tensor.nbytes
            else:
                holders.setdefault((tensor.name, tensor.box), []).append((rank, index))

    shared: dict[tuple[int, ...], list[list[tuple[int, int]]]] = {}
    for places in holders.values():
        shared.setdefault(tuple(rank for rank, _ in places), []).append(places)
    for ranks in sorted(shared, key=lambda ranks: (len(ranks), ranks)):  # those without a choice first
        _spread(shared[ranks], ranks, held, loads, pieces)
    return JobPlan(tuple(tuple(p) for p in pieces))


def check_agreement(held: Sequence[Sequence[Held]]) -> None:
    """Raise :class:`LayoutConflictError` unless every name has one shape and dtype in the whole job."""
    seen: dict[str, tuple[int, Held]] = {}
    for rank, tensors in enumerate(held):
        for tensor in tensors:
            first_rank, first = seen.setdefault(tensor.name, (rank, tensor))
            if (first.shape, first.dtype) != (tensor.shape, tensor.dtype):
                raise LayoutConflictError(
                    f"{tensor.name} is {first.dtype}{list(first.shape)} on rank {first_rank} but "
                    f"{tensor.dtype}{list(tensor.shape)} on rank {rank}; make it a DTensor if these are shards of one "
                    "tensor, or wrap it in datastates.per_rank(...) if every rank has its own"
                )


def check_complete(held: Sequence[Sequence[Held]]) -> None:
    """Raise :class:`LayoutConflictError` if the boxes of some tensor leave out a part of it."""
    everything = list(itertools.chain.from_iterable(held))
    parts = {tensor.name: (tensor, set[Box]()) for tensor in everything if tensor.box.sizes != tensor.shape}
    for tensor in everything if parts else ():
        if tensor.name in parts:
            parts[tensor.name][1].add(tensor.box)
    for name, (tensor, boxes) in parts.items():
        num_held, num_elements = sum(box.numel for box in boxes), math.prod(tensor.shape)
        if num_held < num_elements:
            raise LayoutConflictError(
                f"the ranks that save hold {num_held} of the {num_elements} elements of {name}, a sharded tensor of "
                f"shape {list(tensor.shape)}; save with all ranks that hold parts of it"
            )


def _spread(
    places: list[list[tuple[int, int]]],
    ranks: tuple[int, ...],
    held: Sequence[Sequence[Held]],
    loads: list[int],
    pieces: list[list[Piece]],
) -> None:
    """Lay the boxes that exactly ``ranks`` hold on a line and cut it where each rank has its share."""
    total = sum(held[where[0][0]][where[0][1]].nbytes for where in places)
    shares = _fill_levels([loads[rank] for rank in ranks], total)
    turn, room = 0, shares[0]
    for where in places:
        tensor = held[where[0][0]][where[0][1]]
        index_on = dict(where)
        rows = tensor.box.sizes[0] if tensor.box.sizes else 1
        begin = 0
        while True:
            while room <= 0 and turn + 1 < len(ranks):
                turn += 1
                room += shares[turn]
            rank = ranks[turn]
            end = rows if turn + 1 == len(ranks) else _cut(tensor, rows, begin, room)
            box = tensor.box if (begin, end) == (0, rows) else tensor.box.rows(begin, end)
            pieces[rank].append(Piece(index_on[rank], tensor.name, box))
            nbytes = box.numel * tensor.itemsize_bytes
            loads[rank] += nbytes
            room -= nbytes
            begin = end
            if begin == rows:
                break
            turn += 1  # after a cut the rest is another rank's, however the rounding fell
            room += shares[turn]


def _cut(tensor: Held, rows: int, begin: int, room: int) -> int:
    """Up to which row a rank with ``room`` bytes left takes ``tensor``."""
    if tensor.nbytes < CUT_BYTES or rows < 2:
        return rows
    row_bytes = tensor.nbytes // rows
    end = begin + max(1, round(room / row_bytes))
    return rows if (rows - end) * row_bytes < CUT_BYTES // 4 else end


def _fill_levels(loads: list[int], total: int) -> list[int]:
    """How many of ``total`` bytes each rank takes so that the loads end as level as they can."""
    level, filled = 0, sorted(loads)
    for count in range(1, len(filled) + 1):
        level = (total + sum(filled[:count])) // count
        if count == len(filled) or level <= filled[count]:
            break
    return [max(0, level - load) for load in loads]
