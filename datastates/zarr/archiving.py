"""Archiving: a checkpoint as a compressed Zarr hierarchy of its own, written shard by shard by several threads.

    measure     a few chunks of every kind of tensor, with every codec       -> one codec per kind
    write       read a box, compress its chunks, write the file, sync it     (threads; one shard each in memory)
    publish     index with the checksum of every file, syncs, one rename

Nobody sees an archive that is not whole, and none is ever overwritten.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import glob
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from datastates import storage_ops
from datastates.dtypes import dtype_of
from datastates.manifest import ObjectsFile, TensorInfo
from datastates.reader import CheckpointReader
from datastates.zarr.codecs import CODEC_NAMES, Codec, Measured, choose, measure
from datastates.zarr.grid import Grid, choose_chunk, choose_shard
from datastates.zarr.hierarchy import groups_of, node_paths
from datastates.zarr.index import Index, index_attributes, seal
from datastates.zarr.metadata import (
    CONSOLIDATED_NODES,
    Json,
    array_document,
    bytes_codec,
    chunk_key,
    document_bytes,
    extra_dims,
    group_document,
)
from datastates.zarr.shard_file import Layout, encode_file
from datastates.zarr.threads import run_in_threads
from datastates.zarr.view import ATTRIBUTE, DOCUMENT
from oneflow_sbp import Box

import _elastates

CHUNK_BYTES = 1 << 20
"""What is compressed at a time, and the least that a reader of a few rows has to read."""
SMALL_BYTES = 64 << 10
"""Tensors below this are of one kind with all others of their element type; kinds below it are not measured."""
SAMPLE_CHUNKS = 6
SYNC_THREADS = 16
"""For small files, whose cost is the wait for the disk: file systems sync many at once in about the time of one."""
T = TypeVar("T")
Kind = tuple[str, ...]
"""(element type, first part of the name, last part), or (element type,) for small tensors."""
Progress = Callable[[int, int], None]
"""(bytes done, bytes in all), of uncompressed tensor data."""


@dataclass(frozen=True)
class ArchiveReport:
    """What :func:`datastates.archive` did."""

    path: Path
    step: int
    raw_bytes: int
    """Of tensors and Python state, uncompressed."""
    stored_bytes: int
    """Of all files."""
    elapsed_s: float
    codecs: Mapping[str, str]
    """Kind of tensor -> codec."""
    measured: Mapping[str, tuple[Measured, ...]]
    """Kind of tensor -> what every codec made of its sample; without those that were not measured."""

    @property
    def ratio(self) -> float:
        """Raw over stored."""
        return self.raw_bytes / self.stored_bytes


class PlannedArray(NamedTuple):
    """A tensor on its way into the archive."""

    name: str
    path: str
    info: TensorInfo
    layout: Layout

    @property
    def size_bytes(self) -> int:
        return Box.whole(self.info.shape).numel * self.layout.itemsize_bytes

    @property
    def kind(self) -> Kind:
        if self.size_bytes < SMALL_BYTES:
            return (self.info.dtype,)
        return (self.info.dtype, self.name.partition(".")[0], self.name.rpartition(".")[2])

    def document(self, codec: Codec) -> Json:
        extra = extra_dims(self.info.dtype)
        codecs = self.layout.codecs(bytes_codec(self.info.dtype), codec.documents(), extra)
        about = {"name": self.name, "dtype": self.info.dtype}
        return array_document(self.path, self.info, self.layout.files.chunk, codecs, {ATTRIBUTE: about})


def plan_arrays(tensors: Mapping[str, TensorInfo], shard_bytes: int) -> list[PlannedArray]:
    """Where every tensor goes, and how it is cut. Pure."""
    paths = node_paths(tensors)
    return [_planned(name, paths[name], info, shard_bytes) for name, info in tensors.items()]


def _planned(name: str, path: str, info: TensorInfo, shard_bytes: int) -> PlannedArray:
    itemsize = dtype_of(info.dtype).itemsize
    chunk = choose_chunk(info.shape, itemsize, min(CHUNK_BYTES, shard_bytes))
    shard = choose_shard(info.shape, chunk, itemsize, shard_bytes)
    return PlannedArray(name, path, info, Layout(Grid(info.shape, shard), Grid(info.shape, chunk), itemsize))


def choose_codecs(
    reader: CheckpointReader, arrays: Sequence[PlannedArray], codec: str, min_mb_s: float
) -> tuple[dict[Kind, str], dict[Kind, tuple[Measured, ...]]]:
    """One codec for every kind of tensor: the given one, or what is best on a sample of the kind."""
    kinds: dict[Kind, list[PlannedArray]] = {}
    for array in arrays:
        if array.size_bytes:
            kinds.setdefault(array.kind, []).append(array)
    if codec != "auto":
        return dict.fromkeys(kinds, codec), {}
    chosen, measured = {}, {}
    for kind, members in kinds.items():
        if sum(array.size_bytes for array in members) < SMALL_BYTES:
            chosen[kind] = "none"
            continue
        sample = [_raw(reader.read(array.name, box)) for array, box in sample_boxes(members)]
        itemsize = members[0].layout.itemsize_bytes
        measured[kind] = tuple(measure(name, itemsize, sample) for name in CODEC_NAMES)
        chosen[kind] = choose(measured[kind], min_mb_s).codec
    return chosen, measured


def sample_boxes(members: Sequence[PlannedArray]) -> list[tuple[PlannedArray, Box]]:
    """A few chunks of tensors of one kind, spread over the tensors and over each of them."""
    arrays = _spread(members, SAMPLE_CHUNKS)
    each = -(-SAMPLE_CHUNKS // len(arrays))
    found = []
    for array in arrays:
        grid = array.layout.chunks
        total = int(np.prod(grid.counts, dtype=np.int64))
        for number in _spread(range(total), each):
            index = tuple(int(i) for i in np.unravel_index(number, grid.counts)) if grid.counts else ()
            found.append((array, grid.inner(index)))
    return found


def _spread(items: Sequence[T], count: int) -> list[T]:
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def _raw(tensor: torch.Tensor) -> np.ndarray:
    return tensor.reshape(-1).view(torch.uint8).numpy()


class Archiver:
    """Writes one archive to a temporary directory beside its place; :meth:`publish` makes it visible."""

    def __init__(self, reader: CheckpointReader, destination: Path) -> None:
        self._reader = reader
        self._destination = destination
        storage_ops.make_directories(destination.parent)
        self.path, fd = _temporary_beside(destination)
        self._lock_fd: int | None = fd
        self._files: dict[str, tuple[int, int]] = {}
        self._documents: dict[str, Json] = {}

    def write_arrays(
        self, arrays: Sequence[PlannedArray], codecs: Mapping[Kind, str], threads: int, progress: Progress | None
    ) -> None:
        """Write every tensor; one file per thread is in memory at a time."""
        total = sum(array.size_bytes for array in arrays)
        done = 0
        large = [array for array in arrays if array.size_bytes >= CHUNK_BYTES]
        small = [array for array in arrays if array.size_bytes < CHUNK_BYTES]
        for some, at_once in ((large, threads), (small, SYNC_THREADS)):
            for size_bytes in run_in_threads(self._jobs(some, codecs), at_once):
                done += size_bytes
                if progress is not None and size_bytes:
                    progress(done, total)

    def _jobs(self, arrays: Sequence[PlannedArray], codecs: Mapping[Kind, str]) -> Iterator[Callable[[], int]]:
        """One for every file, each returning the bytes of tensor data that it wrote."""
        for array in arrays:
            codec = Codec(codecs.get(array.kind, "none"), _typesize(array))
            yield functools.partial(self._write_document, array.path, array.document(codec))
            for index in array.layout.files.indices():
                yield functools.partial(self._write_part, array, index, codec)

    def write_python(self, ranks: int) -> tuple[ObjectsFile, ...]:
        """Write the Python state of every rank, each as an array of bytes; returns where it is."""
        root = "python_state"
        while root in self._documents or any(path.startswith(f"{root}/") for path in self._documents):
            root += "_"
        return tuple(self._write_text(f"{root}/{rank}", self._reader.objects_text(rank)) for rank in range(ranks))

    def _write_text(self, path: str, text: bytes) -> ObjectsFile:
        values = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        array = _planned(path, path, TensorInfo("uint8", tuple(values.shape), ()), 64 * CHUNK_BYTES)
        codec = Codec("zstd", 1)
        self._write_document(path, array.document(codec))
        for index in array.layout.files.indices():
            box = array.layout.files.inner(index)
            part = values[box.relative_to(Box.whole(array.info.shape))]
            self._write(chunk_key(path, index, "uint8"), encode_file(array.layout, index, part, codec))
        return ObjectsFile(path, len(text), _elastates.crc32c(text))

    def _write_part(self, array: PlannedArray, index: tuple[int, ...], codec: Codec) -> int:
        box = array.layout.files.inner(index)
        content = encode_file(array.layout, index, self._reader.read(array.name, box), codec)
        self._write(chunk_key(array.path, index, array.info.dtype), content)
        return box.numel * array.layout.itemsize_bytes

    def _write_document(self, path: str, document: Json) -> int:
        self._documents[path] = document
        self._write(f"{path}/{DOCUMENT}", document_bytes(document))
        return 0

    def _write(self, key: str, content: bytes) -> None:
        path = self.path / key
        storage_ops.make_directories(path.parent)
        storage_ops.write_synced(path, content)
        self._files[key] = len(content), _elastates.crc32c(content)  # a dict takes items of several threads

    def publish(self, arrays: Sequence[PlannedArray], objects: tuple[ObjectsFile, ...]) -> int:
        """Write the index and make the archive visible; returns the bytes of all its files.

        Raises:
            FileExistsError: something is there already; nothing is overwritten.
        """
        groups = sorted(groups_of(self._documents) - {""})
        _at_once(functools.partial(self._write_document, group, group_document({})) for group in groups)
        manifest = replace(self._reader.manifest, files=(), objects=objects)
        paths = {array.name: array.path for array in arrays}
        about = index_attributes(Index(manifest, paths, dict(sorted(self._files.items()))))
        attributes = {ATTRIBUTE: about, "python": self._reader.encoded_python(0)}
        below = self._documents if len(self._documents) <= CONSOLIDATED_NODES else None
        content = seal(group_document(attributes, below))
        storage_ops.write_synced(self.path / DOCUMENT, content)
        directories = [Path(directory) for directory, _, _ in os.walk(self.path)]
        _at_once(functools.partial(storage_ops.sync_directory, directory) for directory in directories)
        try:
            storage_ops.rename_no_replace(self.path, self._destination)
        except FileExistsError as error:
            raise FileExistsError(f"{self._destination} exists and is not overwritten; give another name") from error
        storage_ops.sync_ancestors(self._destination)
        return len(content) + sum(size for size, _ in self._files.values())

    def close(self) -> None:
        """Remove what was not published. Idempotent."""
        if self._lock_fd is not None:
            with contextlib.suppress(FileNotFoundError):  # it has its final name
                storage_ops.remove_tree(self.path)
            os.close(self._lock_fd)
            self._lock_fd = None


def _at_once(jobs: Iterable[Callable[[], object]]) -> None:
    """Run jobs that mostly wait for the disk."""
    for _ in run_in_threads(jobs, SYNC_THREADS):
        pass


def _typesize(array: PlannedArray) -> int:
    """What shuffling works in: the two halves of a complex number are numbers of their own."""
    dtype = dtype_of(array.info.dtype)
    return dtype.itemsize // 2 if dtype.is_complex else dtype.itemsize


def _temporary_beside(destination: Path) -> tuple[Path, int]:
    """A new directory beside ``destination``, locked while we live, after removing those of writers that have died."""
    prefix = f".archive-{destination.name}-"  # not .tmp-: a writer of checkpoints may have such beside it
    for left in destination.parent.glob(f"{glob.escape(prefix)}????????"):
        with contextlib.suppress(OSError):  # busy, or gone since
            fd = _locked(left)
            try:
                storage_ops.remove_tree(left)
            finally:
                os.close(fd)
    path = destination.parent / f"{prefix}{secrets.token_hex(4)}"
    storage_ops.make_directory(path)
    return path, _locked(path)


def _locked(directory: Path) -> int:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def archive(
    checkpoint: CheckpointReader,
    destination: Path,
    *,
    codec: str,
    min_mb_s: float,
    shard_mb: float,
    threads: int,
    progress: Progress | None,
) -> ArchiveReport:
    """See :func:`datastates.archive`."""
    if codec not in ("auto", *CODEC_NAMES):
        raise ValueError(f"codec is {codec!r}, expected one of auto, {', '.join(CODEC_NAMES)}")
    if not shard_mb > 0:  # NaN included
        raise ValueError(f"shard_mb is {shard_mb}, expected more than 0")
    if destination.exists():
        raise FileExistsError(f"{destination} exists and is not overwritten; give another name")
    begun = time.perf_counter()
    manifest = checkpoint.manifest
    arrays = plan_arrays(manifest.tensors, max(1, int(shard_mb * 1e6)))
    codecs, measured = choose_codecs(checkpoint, arrays, codec, min_mb_s)
    archiver = Archiver(checkpoint, destination)
    try:
        archiver.write_arrays(arrays, codecs, threads, progress)
        objects = archiver.write_python(manifest.num_ranks)
        stored_bytes = archiver.publish(arrays, objects)
    finally:
        archiver.close()
    return ArchiveReport(
        path=destination,
        step=manifest.step,
        raw_bytes=sum(array.size_bytes for array in arrays) + sum(o.size_bytes for o in objects),
        stored_bytes=stored_bytes,
        elapsed_s=time.perf_counter() - begun,
        codecs={" ".join(kind): name for kind, name in codecs.items()},
        measured={" ".join(kind): found for kind, found in measured.items()},
    )
