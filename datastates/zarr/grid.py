"""Chunk grids: which box of a tensor a chunk is, and how large chunks ought to be. Pure arithmetic.

Chunks are runs of whole rows wherever rows are small enough: those are contiguous in the files, so that reading a few
rows reads a few rows. All chunks of an array have one shape; the last ones stick out over its end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from oneflow_sbp import Box


@dataclass(frozen=True)
class Grid:
    """A regular grid of chunks over a tensor, in elements."""

    shape: tuple[int, ...]
    chunk: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Chunks along every dim; none where a dim is empty."""
        return tuple(-(-extent // size) for extent, size in zip(self.shape, self.chunk, strict=True))

    def indices(self) -> Iterator[tuple[int, ...]]:
        """All chunk indices, row-major."""
        return itertools.product(*map(range, self.counts))

    def has(self, index: tuple[int, ...]) -> bool:
        """Whether ``index`` is one of them."""
        return len(index) == len(self.counts) and all(0 <= i < n for i, n in zip(index, self.counts, strict=True))

    def box(self, index: tuple[int, ...]) -> Box:
        """The whole box of a chunk, including what sticks out."""
        return Box(tuple(i * size for i, size in zip(index, self.chunk, strict=True)), self.chunk)

    def inner(self, index: tuple[int, ...]) -> Box:
        """The part of a chunk that the tensor has."""
        part = self.box(index).intersect(Box.whole(self.shape))
        assert part is not None, "an index of the grid is of a chunk with elements"
        return part

    def meeting(self, box: Box) -> Iterator[tuple[int, ...]]:
        """Indices of the chunks that have elements of ``box``, row-major."""
        if not box.numel:
            return iter(())
        ranges = [
            range(begin // size, (begin + length - 1) // size + 1)
            for begin, length, size in zip(box.offsets, box.sizes, self.chunk, strict=True)
        ]
        return itertools.product(*ranges)


def choose_chunk(shape: tuple[int, ...], itemsize_bytes: int, target_bytes: int, row_step: int = 0) -> tuple[int, ...]:
    """A chunk shape of at most ``target_bytes``: trailing dims whole, one dim cut evenly, one index of the dims before.

    Args:
        shape: of the tensor; chunks are at least one element long in empty dims.
        itemsize_bytes: size of an element.
        target_bytes: the most a chunk takes, unless one element takes more.
        row_step: if not 0, stored boxes begin at multiples of it along dim 0, and chunks preferably do, too.
    """
    room = max(1, target_bytes // itemsize_bytes)
    chunk = [1] * len(shape)
    for dim in reversed(range(len(shape))):
        extent = max(1, shape[dim])
        if extent <= room and not (dim == 0 and 0 < row_step < extent):
            chunk[dim] = extent
            room //= extent
            continue
        chunk[dim] = _even(extent, room)
        if dim == 0 and row_step:
            aligned = _divisor(row_step, room)
            chunk[dim] = aligned if 4 * aligned >= chunk[dim] else chunk[dim]
        break
    return tuple(chunk)


def choose_shard(
    shape: tuple[int, ...], chunk: tuple[int, ...], itemsize_bytes: int, target_bytes: int
) -> tuple[int, ...]:
    """The shape of a file of chunks, a multiple of ``chunk`` in every dim, of at most ``target_bytes`` where it can."""
    room = max(1, target_bytes // (math.prod(chunk) * itemsize_bytes))
    shard = list(chunk)
    for dim, count in reversed(list(enumerate(Grid(shape, chunk).counts))):
        together = min(max(1, count), _even(max(1, count), room))
        shard[dim] = chunk[dim] * together
        if together < count:
            break
        room //= together
    return tuple(shard)


def covering_box(box: Box, begin: int, end: int) -> tuple[Box, int]:
    """The smallest run of whole rows (at some depth) of ``box`` that holds its row-major elements ``[begin, end)``.

    Returns:
        That box, and the position of element ``begin`` in its own row-major order.
    """
    offsets, sizes = list(box.offsets), list(box.sizes)
    for dim in range(len(sizes)):
        stride = math.prod(sizes[dim + 1 :])
        first, last = begin // stride, (end - 1) // stride
        offsets[dim] += first
        sizes[dim] = last - first + 1
        begin -= first * stride
        end -= first * stride
        if first != last:
            break
    return Box(tuple(offsets), tuple(sizes)), begin


def _even(extent: int, room: int) -> int:
    """Cut ``extent`` into as few parts of at most ``room`` as it takes, all about alike."""
    return -(-extent // -(-extent // max(1, room)))


def _divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` up to ``limit``."""
    best = 1
    for low in range(1, math.isqrt(number) + 1):
        if number % low == 0:
            best = max([best, *(d for d in (low, number // low) if d <= limit)])
    return best
