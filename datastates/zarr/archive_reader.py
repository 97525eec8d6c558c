"""Reading an archive: the same calls as for a checkpoint, from compressed chunks whose checksums are checked."""

from __future__ import annotations

import functools
import json
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from datastates.dtypes import dtype_of
from datastates.errors import DamagedCheckpointError
from datastates.loading import Target
from datastates.manifest import TensorInfo
from datastates.reader import CheckpointReader, Damage
from datastates.zarr.index import Index, layout_of, parse
from datastates.zarr.metadata import Json, chunk_key
from datastates.zarr.shard_file import Layout, decode_file
from datastates.zarr.threads import run_in_threads
from datastates.zarr.view import DOCUMENT
from oneflow_sbp import Box

import _elastates


class StoredArray(NamedTuple):
    """An array of the archive."""

    path: str
    info: TensorInfo
    layout: Layout
    packing: list[Json]
    """The codecs behind ``bytes``."""


class ArchiveReader(CheckpointReader):
    """An archive, open for reading, as :func:`datastates.open_checkpoint` opens a checkpoint.

    Checksums are checked whatever ``verify`` says: they stand inside the chunks.
    """

    def __init__(self, path: Path, *, threads: int) -> None:
        """
        Raises:
            DamagedCheckpointError: the root's ``zarr.json`` is not what was written, or no archive's.
            FileNotFoundError: there is none.
        """
        try:
            self.index: Index = parse((path / DOCUMENT).read_bytes())
        except ValueError as error:
            raise DamagedCheckpointError(f"{path / DOCUMENT}: {error}") from error
        super().__init__(path, self.index.manifest, threads=threads)
        self._array_of = functools.cache(self._open_array)

    def array(self, name: str) -> StoredArray:
        """Where a stored tensor lies."""
        return self._array_of(self.index.paths[name], self.manifest.tensors[name])

    def _open_array(self, path: str, info: TensorInfo) -> StoredArray:
        key = f"{path}/{DOCUMENT}"
        content = self._content(key)
        if _elastates.crc32c(content) != self.index.files[key][1]:
            raise DamagedCheckpointError(f"{self.path / key}: checksum mismatch")
        try:
            return StoredArray(path, info, *layout_of(json.loads(bytes(content)), info))
        except ValueError as error:
            raise DamagedCheckpointError(f"{self.path / key}: {error}") from error

    def _content(self, key: str) -> memoryview:
        """A file, mapped: what is not looked at is not read."""
        if key not in self.index.files:
            raise DamagedCheckpointError(f"{self.path / key} is not among the files of the archive")
        expected = self.index.files[key][0]
        try:
            with open(self.path / key, "rb") as file:
                actual = os.fstat(file.fileno()).st_size
                if actual != expected or not actual:
                    raise DamagedCheckpointError(
                        f"{self.path / key}: {actual} bytes, expected {expected}: truncated or altered"
                    )
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise DamagedCheckpointError(f"{self.path / key}: {error.strerror}") from error

    def load(self, targets: list[Target]) -> None:
        """Fill live tensors, several files at a time.

        Raises:
            DamagedCheckpointError: a chunk is not what was written; names the file, the chunk and the tensor. Targets
                may be half overwritten then.
        """
        for _ in run_in_threads(self._parts(targets), self._threads):
            pass

    def read_file(self, name: str, index: tuple[int, ...]) -> torch.Tensor:
        """The elements of a tensor that file ``index`` of its array holds, on this thread."""
        array = self.array(name)
        box = array.layout.files.inner(index)
        out = torch.empty(box.sizes, dtype=dtype_of(array.info.dtype))
        self._load_part(array, index, Target(name, out, box))
        return out

    def _load(self, targets: list[Target], verify: bool) -> None:
        self.load(targets)

    def _parts(self, targets: list[Target]) -> Iterator[Callable[[], None]]:
        for target in targets:
            array = self.array(target.name)
            for index in array.layout.files.meeting(target.box):
                yield functools.partial(self._load_part, array, index, target)

    def _load_part(self, array: StoredArray, index: tuple[int, ...], target: Target) -> None:
        with torch.no_grad():
            for box, raw in self._chunks(array, index, target.box):
                part = box.intersect(target.box)
                if part is not None:
                    values = raw.view(dtype_of(array.info.dtype)).reshape(box.sizes)
                    target.tensor[part.relative_to(target.box)].copy_(values[part.relative_to(box)])

    def _chunks(self, array: StoredArray, index: tuple[int, ...], wanted: Box) -> Iterator[tuple[Box, torch.Tensor]]:
        """Whole boxes of the chunks that meet ``wanted``, and their bytes."""
        key = chunk_key(array.path, index, array.info.dtype)
        try:
            for box, raw in decode_file(array.layout, index, self._content(key), array.packing, wanted):
                yield box, torch.from_numpy(raw)
        except ValueError as error:
            raise DamagedCheckpointError(
                f"{self.path / key}: {error}; it holds a part of {array.path.replace('/', '.')}"
            ) from error

    def _read_objects(self, rank: int) -> bytes:
        objects = self.manifest.objects[rank]
        info = TensorInfo("uint8", (objects.size_bytes,), ())
        array = self._array_of(objects.name, info)
        out = torch.empty(info.shape, dtype=torch.uint8)
        target = Target(objects.name, out, Box.whole(info.shape))
        for index in array.layout.files.indices():
            self._load_part(array, index, target)
        content = out.numpy().tobytes()
        if _elastates.crc32c(content) != objects.crc32c:
            raise DamagedCheckpointError(f"{self.path / objects.name}: the checksum does not match")
        return content

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[Damage]:
        """Read every file and compare it with its checksum in the index; see :meth:`CheckpointReader.verify`.

        Files that the index does not name are no damage.
        """
        total = sum(size for size, _ in self.index.files.values())
        done, found = 0, []
        jobs = (functools.partial(self._check, key) for key in self.index.files)
        for size_bytes, damage in run_in_threads(jobs, self._threads):
            found += damage
            done += size_bytes
            if progress is not None:
                progress(done, total)
        return sorted(found, key=lambda damage: damage.file)

    def _check(self, key: str) -> tuple[int, list[Damage]]:
        size, crc = self.index.files[key]
        try:
            what = "" if _elastates.crc32c(self._content(key)) == crc else f"{self.path / key}: checksum mismatch"
        except DamagedCheckpointError as error:
            what = str(error)
        owners = tuple(name for name, path in self.index.paths.items() if what and key.startswith(f"{path}/"))
        return size, [Damage(key, 0, size, owners, what)] if what else []


def is_archive(path: Path) -> bool:
    """Whether ``path`` is a Zarr hierarchy, and so perhaps an archive."""
    return (path / DOCUMENT).is_file()
