"""A checkpoint as a read-only Zarr store: keys and values are made up as they are asked for, nothing is copied."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, NoReturn

import numpy as np
import torch
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from datastates.dtypes import dtype_of
from datastates.manifest import TensorInfo
from datastates.reader import open_checkpoint
from datastates.zarr.data_types import register
from datastates.zarr.extents import VerifiedBoxes
from datastates.zarr.grid import covering_box
from datastates.zarr.view import Chunk, View
from oneflow_sbp import Box

MB = 1_000_000


class CheckpointStore(Store):
    """See :func:`datastates.zarr_store`. Safe to use from several threads; pickles as what it was opened with."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(
        self, path: str | os.PathLike[str], *, verify: bool = True, chunk_mb: float = 4, cache_mb: float = 128
    ) -> None:
        super().__init__(read_only=True)
        if "://" in os.fspath(path):
            raise ValueError(
                f"{path} is a URL, and views are of checkpoints on this machine; fetch or archive it first"
            )
        register()
        reader = open_checkpoint(path)
        self.path = reader.path
        """The checkpoint: stays the same one, whatever comes after it."""
        self._options = {"verify": verify, "chunk_mb": chunk_mb, "cache_mb": cache_mb}
        self._view = View(reader.manifest, reader.encoded_python(), max(1, int(chunk_mb * MB)))
        self._boxes = VerifiedBoxes(reader.path, reader.manifest, int(cache_mb * MB))
        self._read: Callable[[str, Box], torch.Tensor] = (
            self._boxes.read if verify else functools.partial(reader.read, verify=False)
        )

    @property
    def bytes_read(self) -> int:
        """Bytes read so far from data files to be verified: whole extents."""
        return self._boxes.bytes_read

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CheckpointStore) and self.__reduce__() == other.__reduce__()

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (os.path.abspath(self.path), self._options)

    def __str__(self) -> str:
        return f"elastates://{self.path}"

    def __repr__(self) -> str:
        return f"CheckpointStore({str(self.path)!r})"

    # ---- values ----

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The value of ``key``, or the asked-for range of it; only the extents behind that range are read.

        Raises:
            DamagedCheckpointError: an extent is not what was written.
        """
        make = (prototype or default_buffer_prototype()).buffer
        document = self._view.document(key)
        if document is not None:
            begin, end = _range(byte_range, len(document))
            return make.from_bytes(document[begin:end])
        chunk = self._view.chunk(key)
        if chunk is None:
            return None
        begin, end = _range(byte_range, chunk.array.chunk_bytes)
        return make.from_array_like(await asyncio.to_thread(self._bytes_of, chunk, begin, end))

    def _bytes_of(self, chunk: Chunk, begin: int, end: int) -> np.ndarray:
        """[end - begin] uint8: bytes of a chunk in row-major order, zeros where it sticks out over the tensor's end."""
        if begin == end:
            return np.empty(0, dtype=np.uint8)
        array = chunk.array
        itemsize = dtype_of(array.info.dtype).itemsize
        box, first = covering_box(array.grid.box(chunk.at), begin // itemsize, -(-end // itemsize))
        flat = self._box(array.name, array.info, box).reshape(-1).view(torch.uint8)
        skip = first * itemsize + begin % itemsize
        return flat[skip : skip + end - begin].numpy()

    def _box(self, name: str, info: TensorInfo, box: Box) -> torch.Tensor:
        """[*box.sizes]: elements of a tensor, zeros where the box leaves it."""
        part = box.intersect(Box.whole(info.shape))
        if part == box:
            return self._read(name, box)
        out = torch.zeros(box.sizes, dtype=dtype_of(info.dtype))
        if part is not None:
            out[part.relative_to(box)] = self._read(name, part)
        return out

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, wanted) for key, wanted in key_ranges)))

    async def exists(self, key: str) -> bool:
        return self._size_of(key) is not None

    async def getsize(self, key: str) -> int:
        size = self._size_of(key)
        if size is None:
            raise FileNotFoundError(key)
        return size

    def _size_of(self, key: str) -> int | None:
        document = self._view.document(key)
        if document is not None:
            return len(document)
        chunk = self._view.chunk(key)
        return None if chunk is None else chunk.array.chunk_bytes

    # ---- keys ----

    async def list(self) -> AsyncIterator[str]:
        for key in self._view.all_keys():
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        inside = prefix.rpartition("/")[0]
        for key in self._view.keys_below(inside):
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        for name in self._view.children(prefix.rstrip("/")):
            yield name

    # ---- what a checkpoint does not do ----

    async def set(self, key: str, value: Buffer) -> NoReturn:
        self._refuse()

    async def delete(self, key: str) -> NoReturn:
        self._refuse()

    async def delete_dir(self, prefix: str) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        self._check_writable()
        raise AssertionError("the store is read-only")


def _reopen(path: str, options: dict[str, Any]) -> CheckpointStore:
    return CheckpointStore(path, **options)


def _range(wanted: ByteRequest | None, size: int) -> tuple[int, int]:
    """The bytes that a request means of a value of ``size`` bytes."""
    match wanted:
        case None:
            return 0, size
        case RangeByteRequest(start=start, end=end):
            begin = min(start, size)
            return begin, max(begin, min(end, size))
        case OffsetByteRequest(offset=offset):
            return min(offset, size), size
        case SuffixByteRequest(suffix=suffix):
            return max(0, size - suffix), size
    raise ValueError(f"Unexpected byte_range, got {wanted!r}.")
