"""One file of an array: a chunk, or a shard of many chunks with their index behind them (``sharding_indexed``).

chunk | chunk | ... | u64 offset, u64 size of every chunk, row-major | u32 CRC32C of the index

Chunks of a shard that lie outside the array have no bytes: offset and size are all ones.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from datastates.zarr.codecs import CRC, CRC_BYTES, Codec, decode
from datastates.zarr.grid import Grid
from datastates.zarr.metadata import Json
from oneflow_sbp import Box

import _elastates

ABSENT = (1 << 64) - 1
_LITTLE: Json = {"name": "bytes", "configuration": {"endian": "little"}}


@dataclass(frozen=True)
class Layout:
    """How an array lies in files."""

    files: Grid
    """One chunk of this grid is one file."""
    chunks: Grid
    """What is compressed at a time; a whole number of them per file along every dim."""
    itemsize_bytes: int

    @property
    def is_sharded(self) -> bool:
        return self.files.chunk != self.chunks.chunk

    @property
    def chunk_bytes(self) -> int:
        return math.prod(self.chunks.chunk) * self.itemsize_bytes

    def slots(self, file: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Indices in ``chunks`` of what a file holds, in the order of its index; some may lie outside the array."""
        per_file = [a // b for a, b in zip(self.files.chunk, self.chunks.chunk, strict=True)]
        inside = Grid(tuple(per_file), (1,) * len(per_file))
        return [tuple(f * n + i for f, n, i in zip(file, per_file, at, strict=True)) for at in inside.indices()]

    def codecs(self, to_bytes: Json, packing: Sequence[Json], extra: Sequence[int]) -> list[Json]:
        """The codecs of the array's ``zarr.json``."""
        inner = [to_bytes, *packing]
        if not self.is_sharded:
            return inner
        configuration = {
            "chunk_shape": [*self.chunks.chunk, *extra],
            "codecs": inner,
            "index_codecs": [_LITTLE, CRC],
            "index_location": "end",
        }
        return [{"name": "sharding_indexed", "configuration": configuration}]


def encode_file(layout: Layout, file: tuple[int, ...], part: torch.Tensor, codec: Codec) -> bytes:
    """The bytes of a file.

    Args:
        layout: of the array.
        file: index in ``layout.files``.
        part: the elements of the array that the file holds: ``layout.files.inner(file)``.
        codec: for every chunk.
    """
    box = layout.files.inner(file)
    if not layout.is_sharded:
        return codec.encode(_chunk_bytes(layout, file, part, box))
    pieces: list[bytes] = []
    index: list[int] = []
    at = 0
    for slot in layout.slots(file):
        if not layout.chunks.has(slot):
            index += [ABSENT, ABSENT]
            continue
        pieces.append(codec.encode(_chunk_bytes(layout, slot, part, box)))
        index += [at, len(pieces[-1])]
        at += len(pieces[-1])
    table = np.array(index, dtype="<u8").tobytes()
    return b"".join([*pieces, table, struct.pack("<I", _elastates.crc32c(table))])


def _chunk_bytes(layout: Layout, index: tuple[int, ...], part: torch.Tensor, box: Box) -> np.ndarray:
    """[chunk bytes] uint8: a chunk in row-major order, zeros where it sticks out of the array."""
    inner = layout.chunks.inner(index)
    values = part[inner.relative_to(box)]
    if inner.sizes != layout.chunks.chunk:
        padded = torch.zeros(layout.chunks.chunk, dtype=part.dtype)
        padded[inner.relative_to(layout.chunks.box(index))] = values
        values = padded
    return values.contiguous().reshape(-1).view(torch.uint8).numpy()


def decode_file(
    layout: Layout, file: tuple[int, ...], stored: memoryview, packing: Sequence[Json], wanted: Box
) -> Iterator[tuple[Box, np.ndarray]]:
    """The chunks of a file that have elements of ``wanted``: (whole box of the chunk, its bytes).

    Raises:
        ValueError: a checksum does not match, or a chunk that must be there is not; names the chunk.
    """
    spans = _spans(layout, file, stored)
    for slot in spans:
        if not layout.chunks.has(slot) or layout.chunks.inner(slot).intersect(wanted) is None:
            continue
        offset, size = spans[slot]
        if offset + size > len(stored):
            raise ValueError(f"chunk {slot} is not in the file")
        try:
            raw = decode(packing, stored[offset : offset + size], layout.chunk_bytes)
        except ValueError as error:
            raise ValueError(f"chunk {slot} in bytes [{offset}, {offset + size}): {error}") from error
        yield layout.chunks.box(slot), raw


def _spans(layout: Layout, file: tuple[int, ...], stored: memoryview) -> dict[tuple[int, ...], tuple[int, int]]:
    """Offset and size of every chunk of a file."""
    if not layout.is_sharded:
        return {file: (0, len(stored))}
    per_file = math.prod(a // b for a, b in zip(layout.files.chunk, layout.chunks.chunk, strict=True))
    if 16 * per_file + CRC_BYTES > len(stored):
        raise ValueError(f"{len(stored)} bytes have no room for the index of {per_file} chunks")
    slots = layout.slots(file)
    table = stored[-(16 * len(slots) + CRC_BYTES) : -CRC_BYTES]
    if struct.pack("<I", _elastates.crc32c(table)) != stored[-CRC_BYTES:]:
        raise ValueError("the index of its chunks: checksum mismatch")
    pairs = np.frombuffer(table, dtype="<u8").reshape(-1, 2).tolist()
    return {slot: (offset, size) for slot, (offset, size) in zip(slots, pairs, strict=True)}
