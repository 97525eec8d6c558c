"""Boxes: the n-dimensional, half-open index ranges that layouts, files and transfers are made of.

Pure arithmetic, except :func:`local_box`, which reads the layout of a ``DTensor``.
"""

from __future__ import annotations

import functools
import math
import sys
from typing import NamedTuple

import torch


class Box(NamedTuple):
    """A box of a global tensor: ``offsets[d] <= index[d] < offsets[d] + sizes[d]`` in every dim ``d``."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @staticmethod
    @functools.lru_cache(maxsize=4096)  # models have many tensors and few shapes
    def whole(shape: tuple[int, ...]) -> Box:
        """The box that covers a tensor of ``shape``."""
        return Box((0,) * len(shape), tuple(shape))

    @property
    def numel(self) -> int:
        return math.prod(self.sizes)

    def intersect(self, other: Box) -> Box | None:
        """The common part of two boxes of one tensor; ``None`` if it is empty.

        Two 0-d boxes are the same single element and intersect in it.
        """
        begins = tuple(max(a, b) for a, b in zip(self.offsets, other.offsets, strict=True))
        ends = tuple(
            min(a + m, b + n) for a, m, b, n in zip(self.offsets, self.sizes, other.offsets, other.sizes, strict=True)
        )
        if any(end <= begin for begin, end in zip(begins, ends, strict=True)):
            return None
        return Box(begins, tuple(end - begin for begin, end in zip(begins, ends, strict=True)))

    def inside(self, shape: tuple[int, ...]) -> bool:
        """Whether the box lies within a tensor of ``shape``."""
        return len(self.offsets) == len(self.sizes) == len(shape) and all(
            begin >= 0 and size >= 0 and begin + size <= extent
            for begin, size, extent in zip(self.offsets, self.sizes, shape, strict=True)
        )

    def relative_to(self, outer: Box) -> tuple[slice, ...]:
        """Slices that select this box from a tensor that holds exactly ``outer``."""
        return tuple(
            slice(begin - base, begin - base + size)
            for begin, size, base in zip(self.offsets, self.sizes, outer.offsets, strict=True)
        )

    def flat_range_in(self, outer: Box) -> tuple[int, int] | None:
        """Element range of this box in the row-major order of ``outer``; ``None`` if it is not one run."""
        begin, stride, partial = 0, 1, False
        for dim in reversed(range(len(self.sizes))):
            if partial and self.sizes[dim] != 1:
                return None
            partial = partial or self.sizes[dim] != outer.sizes[dim]
            begin += (self.offsets[dim] - outer.offsets[dim]) * stride
            stride *= outer.sizes[dim]
        return begin, begin + self.numel

    def hull_in(self, outer: Box) -> Box:
        """The smallest box around this one that is one run in the row-major order of ``outer``."""
        dim = next((dim for dim, size in enumerate(self.sizes) if size != 1), len(self.sizes)) + 1
        return Box(self.offsets[:dim] + outer.offsets[dim:], self.sizes[:dim] + outer.sizes[dim:])

    def rows(self, begin: int, end: int) -> Box:
        """The part whose index along dim 0, counted within this box, is in ``[begin, end)``."""
        return Box((self.offsets[0] + begin, *self.offsets[1:]), (end - begin, *self.sizes[1:]))


def local_box(tensor: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...], Box]:
    """What this rank holds of a tensor: (local tensor, global shape, box of the local part).

    A plain tensor is its own whole. A ``DTensor`` must be replicated or sharded on every mesh axis.

    Raises:
        ValueError: the layout has a partial (unreduced) or strided placement, which no box describes.
    """
    dtensor = sys.modules.get("torch.distributed.tensor")  # if nobody imported it, nothing is one
    if dtensor is None or not isinstance(tensor, dtensor.DTensor):
        box = Box.whole(tensor.shape)
        return tensor, box.sizes, box
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
    from torch.distributed.tensor.placement_types import Replicate, Shard

    for placement in tensor.placements:
        if type(placement) not in (Replicate, Shard):
            raise ValueError(
                f"a DTensor with placements {tensor.placements} cannot be stored as a box; "
                "redistribute it to Shard or Replicate placements first"
            )
    shape = tuple(tensor.shape)
    sizes, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    box = Box(tuple(offsets), tuple(sizes))
    # An empty shard may be reported with an offset past the end: pin it inside, so that boxes always are.
    if box.numel == 0:
        box = Box(tuple(min(o, s) for o, s in zip(offsets, shape, strict=True)), box.sizes)
    return tensor.to_local(), shape, box
