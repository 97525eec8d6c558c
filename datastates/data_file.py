"""One rank's data file, planned: header bytes, where every piece goes, and the extents that carry checksums.

The file is a valid safetensors file: ``u64 header length | JSON header | payload``. The header is padded with spaces so
that the payload begins on a block, entries are sorted by element size so that all are aligned, and
``DCP_SHARDING_INFO`` tells stock ``torch.distributed.checkpoint`` which box of the global tensor each entry is.
Pure functions; ``docs/format.md`` is the specification.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datastates.dtypes import SAFETENSORS_NAMES, dtype_of
from datastates.manifest import DataFile
from datastates.plan import Held, Piece
from oneflow_sbp import Box

import _elastates

BLOCK_BYTES = 4096
"""The payload begins at a multiple of this, which is what O_DIRECT asks of every device in use."""
LARGE_BYTES = 256 << 10
"""Tensors from this size on have extents of their own; smaller neighbours share some."""
SHARED_EXTENT_BYTES = 512 << 10
"""About how long what they share is: who wants one of them, verified, reads it all."""
MAX_FINE_EXTENTS = 1 << 16
"""Where deltas ask for fine extents, a file has at most about so many: each costs 20 bytes of the manifest."""


class StoredPiece(NamedTuple):
    """Where one piece lies: ``[begin, end)`` of the file, in bytes."""

    piece: Piece
    begin: int
    end: int


@dataclass(frozen=True)
class DataFilePlan:
    """Everything about a rank's data file except the values."""

    header: bytes
    stored: tuple[StoredPiece, ...]
    """In file order, tiling the payload."""
    size_bytes: int
    extent_ends: np.ndarray
    """[extents] uint64: ascending ends of the checksummed ranges; the first begins at the payload."""
    index: np.ndarray
    """[pieces] int64: position of the piece's tensor among those the rank holds."""
    source_begin: np.ndarray
    """[pieces] uint64: where the piece begins within that tensor's memory, bytes."""
    begins: np.ndarray
    """[pieces] uint64: file offset of the piece, bytes."""
    sizes: np.ndarray
    """[pieces] uint64: bytes."""

    def submission(self, path: Path, refs: Any) -> dict[str, Any]:
        """What ``_elastates.Engine.submit`` has to know of the plan.

        Args:
            path: where the file goes.
            refs: ``_elastates.TensorRefs`` of what the rank holds.
        """
        return {
            "path": str(path),
            "header": self.header,
            "refs": refs,
            "index": self.index,
            "source_begin": self.source_begin,
            "file_begin": self.begins,
            "sizes": self.sizes,
            "extent_ends": self.extent_ends,
            "file_size": self.size_bytes,
        }

    def written(
        self,
        name: str,
        extent_crc32c: Sequence[int] | np.ndarray,
        sources: Sequence[str] = (),
        extent_sources: Sequence[int] | np.ndarray = (),
    ) -> DataFile:
        """The file as the manifest describes it, once its values are there.

        Args:
            name: of the file.
            extent_crc32c: [extents] CRC32C of what it holds.
            sources: see :class:`datastates.manifest.DataFile`, as for the next.
            extent_sources: [extents], or empty without sources.
        """
        return DataFile(
            name=name,
            size_bytes=self.size_bytes,
            header_bytes=len(self.header),
            header_crc32c=_elastates.crc32c(self.header),
            extent_ends=self.extent_ends,
            extent_crc32c=np.asarray(extent_crc32c, dtype=np.uint32),
            sources=tuple(sources),
            extent_sources=np.asarray(extent_sources, dtype=np.uint32) if sources else None,
        )


def plan_data_file(
    held: Sequence[Held], pieces: Sequence[Piece], chunk_bytes: int, fine_extent_bytes: int | None = None
) -> DataFilePlan:
    """Lay out the pieces a rank writes.

    Args:
        held: what this rank holds; pieces refer to it by index.
        pieces: what it writes.
        chunk_bytes: size of the blocks the file is written in; no extent crosses a multiple of it.
        fine_extent_bytes: extents for deltas, which end at multiples of this offset in the file, a multiple of 4096;
            ``None``: around large pieces.
    """
    ordered = sorted(pieces, key=lambda p: (-_alignment(held[p.index]), held[p.index].group))
    sizes = np.array([p.box.numel * held[p.index].itemsize_bytes for p in ordered], dtype=np.uint64)
    ends = np.cumsum(sizes, dtype=np.uint64)
    begins = ends - sizes
    header = _header(held, ordered, begins.tolist(), ends.tolist())
    payload = np.uint64(len(header))
    begins, ends = begins + payload, ends + payload
    size_bytes = int(ends[-1]) if len(ends) else len(header)
    return DataFilePlan(
        header=header,
        stored=tuple(map(StoredPiece, ordered, begins.tolist(), ends.tolist())),
        size_bytes=size_bytes,
        extent_ends=(
            _extent_ends(begins, ends, len(header), size_bytes, chunk_bytes)
            if fine_extent_bytes is None
            else _fine_extent_ends(len(header), size_bytes, chunk_bytes, fine_extent_bytes)
        ),
        index=np.array([p.index for p in ordered], dtype=np.int64),
        source_begin=np.array([_source_begin(held[p.index], p.box) for p in ordered], dtype=np.uint64),
        begins=begins,
        sizes=sizes,
    )


def _alignment(tensor: Held) -> int:
    return tensor.itemsize_bytes if dtype_of(tensor.dtype) in SAFETENSORS_NAMES else 1


def _source_begin(tensor: Held, box: Box) -> int:
    if box == tensor.box or not box.numel:
        return 0
    run = box.flat_range_in(tensor.box)
    assert run is not None, "pieces are cut along dim 0 only"
    return run[0] * tensor.itemsize_bytes


def _header(held: Sequence[Held], pieces: Sequence[Piece], begins: list[int], ends: list[int]) -> bytes:
    entries: dict[str, object] = {}
    offsets: dict[str, object] = {}
    for piece, begin, end in zip(pieces, begins, ends, strict=True):
        tensor = held[piece.index]
        known = SAFETENSORS_NAMES.get(dtype_of(tensor.dtype))
        extra = () if known else (tensor.itemsize_bytes,)
        shape = piece.box.sizes + extra
        entries[piece.name] = {"dtype": known or "U8", "shape": shape, "data_offsets": (begin, end)}
        offsets[piece.name] = {"saved_offsets": piece.box.offsets + (0,) * len(extra)}
    if "__metadata__" in entries:
        raise ValueError("a tensor of the state is called __metadata__, a name that safetensors needs; rename its key")
    if len(entries) != len(pieces):
        raise AssertionError("a rank writes one piece of a tensor to its file")
    metadata = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets, separators=(",", ":"))}
    text = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % BLOCK_BYTES)
    return struct.pack("<Q", len(text)) + text


def _extent_ends(begins: np.ndarray, ends: np.ndarray, payload: int, size_bytes: int, chunk_bytes: int) -> np.ndarray:
    """Cut at chunk borders, around every large piece, and here and there among small ones."""
    large = (ends - begins) >= np.uint64(LARGE_BYTES)
    borders = _multiples(chunk_bytes, payload, size_bytes)
    shared = _between_small(begins, large, payload, size_bytes)
    cuts = np.concatenate([begins[large], ends[large], borders, shared, np.array([size_bytes], dtype=np.uint64)])
    cuts = np.unique(cuts)
    return cuts[cuts > np.uint64(payload)]


def _between_small(begins: np.ndarray, large: np.ndarray, payload: int, size_bytes: int) -> np.ndarray:
    """Where the extents of small neighbours end: where a piece begins, so that as few as can be lie in two."""
    marks = _multiples(SHARED_EXTENT_BYTES, payload, size_bytes)
    pieces = np.searchsorted(begins, marks, side="right") - 1
    return begins[pieces[~large[pieces]]]


def _fine_extent_ends(payload: int, size_bytes: int, chunk_bytes: int, extent_bytes: int) -> np.ndarray:
    """Cut at multiples of ``extent_bytes``, doubled until the file has few enough extents, and at chunk borders.

    Every border but the last is one of a block, so that any run of extents can be written without its neighbours.
    """
    while size_bytes // extent_bytes > MAX_FINE_EXTENTS:
        extent_bytes *= 2
    borders = [_multiples(extent_bytes, payload, size_bytes), _multiples(chunk_bytes, payload, size_bytes)]
    cuts = np.unique(np.concatenate([*borders, np.array([size_bytes], dtype=np.uint64)]))
    return cuts[cuts > np.uint64(payload)]


def _multiples(of: int, begin: int, end: int) -> np.ndarray:
    """Multiples of ``of`` in (begin, end)."""
    return np.arange((begin // of + 1) * of, end, of, dtype=np.uint64)
