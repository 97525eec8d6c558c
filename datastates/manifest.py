"""The manifest: the one file that says what a checkpoint is, and proves that it is whole.

Reading and writing of ``manifest.json``, with every check that can be made without touching the data. Pure functions on
frozen dataclasses; ``docs/format.md`` is the specification.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np

from datastates.bulk import without_gc
from datastates.dtypes import dtype_of
from datastates.errors import DamagedCheckpointError
from oneflow_sbp import Box

import _elastates

T = TypeVar("T")
FORMAT = "elastates-checkpoint"
FORMAT_VERSION = 2
"""The newest that this reader knows. Checkpoints without deltas are of version 1, which knows no sources."""
FILE_NAME = "manifest.json"
_DIGEST = re.compile(rb',"digest":"sha256:([0-9a-f]{64})"\}\n$')
_DIGEST_BYTES = len(',"digest":"sha256:"}\n') + 64
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Shard(NamedTuple):
    """One stored box of a tensor: bytes ``[begin, end)`` of data file number ``file``, row-major."""

    file: int
    begin: int
    end: int
    box: Box


class TensorInfo(NamedTuple):
    """A global tensor and the boxes that tile it."""

    dtype: str
    shape: tuple[int, ...]
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class DataFile:
    """A safetensors file of the checkpoint."""

    name: str
    size_bytes: int
    header_bytes: int
    header_crc32c: int
    extent_ends: np.ndarray
    """[extents] uint64, ascending; extent ``i`` is ``[ends[i-1] or header_bytes, ends[i])``."""
    extent_crc32c: np.ndarray
    """[extents] uint32."""
    sources: tuple[str, ...] = ()
    """Of a delta: files of the checkpoint that hold, at the same offsets, what this one has holes for."""
    extent_sources: np.ndarray | None = None
    """[extents] uint32: which of :attr:`names` holds the extent; ``None``: this file holds all."""

    @property
    def names(self) -> tuple[str, ...]:
        """This file and its sources: all have its size and its header."""
        return (self.name, *self.sources)

    def holder(self, extent: int) -> str:
        """Name of the file that holds an extent."""
        return self.name if self.extent_sources is None else self.names[self.extent_sources[extent]]


@dataclass(frozen=True)
class ObjectsFile:
    """The Python state of one rank, as typed JSON."""

    name: str
    size_bytes: int
    crc32c: int


@dataclass(frozen=True)
class Manifest:
    """The global view of one checkpoint."""

    step: int
    num_ranks: int
    tensors: Mapping[str, TensorInfo]
    files: tuple[DataFile, ...]
    objects: tuple[ObjectsFile, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Tied names: name -> the name it is stored under."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the user passed to ``checkpoint(metadata=)``."""
    created_unix_s: float = 0.0

    @property
    def data_bytes(self) -> int:
        """Bytes of tensor data, each stored once."""
        return sum(f.size_bytes - f.header_bytes for f in self.files)


def tensors_json(tensors: Mapping[str, TensorInfo]) -> str:
    """The manifest's ``tensors`` object; the same for every checkpoint of one plan, so callers keep it."""
    return json.dumps(
        {
            name: {
                "dtype": info.dtype,
                "shape": info.shape,
                "shards": [[s.file, s.begin, s.end, s.box.offsets, s.box.sizes] for s in info.shards],
            }
            for name, info in tensors.items()
        },
        separators=(",", ":"),
    )


def dump(manifest: Manifest, tensors_text: str | None = None) -> bytes:
    """The bytes of ``manifest.json``: one line of JSON whose last member is the SHA-256 of what stands before it."""
    head = {
        "format": FORMAT,
        "format_version": 2 if any(f.sources for f in manifest.files) else 1,
        "step": manifest.step,
        "num_ranks": manifest.num_ranks,
        "created_unix_s": manifest.created_unix_s,
        "metadata": dict(manifest.metadata),
        "aliases": dict(manifest.aliases),
        "files": [
            {
                "name": f.name,
                "size_bytes": f.size_bytes,
                "header_bytes": f.header_bytes,
                "header_crc32c": f.header_crc32c,
                "extent_ends": f.extent_ends.tolist(),
                "extent_crc32c": f.extent_crc32c.tolist(),
                **_sources_json(f),
            }
            for f in manifest.files
        ],
        "objects": [{"name": o.name, "size_bytes": o.size_bytes, "crc32c": o.crc32c} for o in manifest.objects],
    }
    text = json.dumps(head, separators=(",", ":"), allow_nan=False)
    body = f'{text[:-1]},"tensors":{tensors_text or tensors_json(manifest.tensors)}'.encode()
    return body + b',"digest":"sha256:%s"}\n' % hashlib.sha256(body).hexdigest().encode()


def _sources_json(file: DataFile) -> dict[str, Any]:
    """Which file holds which extents, run by run; nothing for a file that holds all of them."""
    if file.extent_sources is None or not file.sources:
        return {}
    held_by = file.extent_sources.astype(np.int64)
    begins = np.flatnonzero(np.diff(held_by, prepend=-1))
    runs = np.stack([held_by[begins], np.diff(begins, append=len(held_by))], axis=1)
    return {"sources": file.sources, "extent_sources": runs.tolist()}


@without_gc()
def load(raw: bytes, where: str, *, on_demand: bool = False) -> Manifest:
    """Parse and check the bytes of a manifest.

    Args:
        raw: content of ``manifest.json``; not trusted.
        where: its path, for messages.
        on_demand: check each tensor when it is first asked for, which then may raise ``DamagedCheckpointError``: who
            wants one of ten thousand need not wait for all.

    Raises:
        DamagedCheckpointError: digest, structure, names or ranges are wrong, or the version is newer than this reader.
    """
    found = _DIGEST.search(raw[-_DIGEST_BYTES:])
    if not found or hashlib.sha256(raw[:-_DIGEST_BYTES]).hexdigest().encode() != found[1]:
        raise DamagedCheckpointError(f"{where}: the manifest's own SHA-256 does not match: truncated or altered")
    return _or_damage(where, lambda: _on_demand(raw, where) if on_demand else _eager(raw))


def _eager(raw: bytes) -> Manifest:
    data = json.loads(raw)
    files = _files(data)
    read = _TensorReader(files).tensor
    return _checked(data, files, {name: read(name, info) for name, info in data["tensors"].items()})


def _on_demand(raw: bytes, where: str) -> Manifest:
    """Parses all but the tensors, which usually are most of the text, and finds where each of them stands."""
    try:
        index = _elastates.JsonIndex(raw, "tensors")
    except ValueError:  # a name with escapes, or no manifest: the parser knows, or says
        return _eager(raw)
    begin, end = index.object
    data = json.loads(raw[:begin] + b"{}" + raw[end:])
    files = _files(data)
    return _checked(data, files, _TensorsOnDemand(raw, index, files, where))


def _or_damage(where: str, check: Callable[[], T]) -> T:
    """``check()``; what goes wrong with untrusted content is damage."""
    try:
        return check()
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedCheckpointError(f"{where}: {error if isinstance(error, ValueError) else repr(error)}") from error


def _files(data: dict[str, Any]) -> tuple[DataFile, ...]:
    """The data files, once it is known that this reader may judge them."""
    if data["format"] != FORMAT:
        raise ValueError(f"format is {data['format']!r}, expected {FORMAT!r}")
    version = _number(data["format_version"])
    if version > FORMAT_VERSION:
        raise ValueError(
            f"format version {version} is newer than {FORMAT_VERSION}, the newest this reader knows; upgrade elastates"
        )
    files = tuple(map(_file, data["files"]))
    if version < 2 and any(f.sources for f in files):
        raise ValueError(f"format version {version} has no sources")
    return files


def _checked(data: dict[str, Any], files: tuple[DataFile, ...], tensors: Mapping[str, TensorInfo]) -> Manifest:
    num_ranks = _number(data["num_ranks"])
    if num_ranks < 1:
        raise ValueError("num_ranks is 0")
    objects = tuple(
        ObjectsFile(_plain(o["name"]), _number(o["size_bytes"]), _number(o["crc32c"])) for o in data["objects"]
    )
    if len(objects) != num_ranks:
        raise ValueError(f"{len(objects)} objects files of {num_ranks} ranks")
    names = [name for f in files for name in f.names] + [o.name for o in objects]
    if len(set(names)) != len(names):
        raise ValueError("two files have one name")
    aliases = data["aliases"]
    for alias, name in aliases.items():
        if name not in tensors:
            raise ValueError(f"{alias} is an alias of {name}, which is not stored")
    return Manifest(
        step=_number(data["step"]),
        num_ranks=num_ranks,
        tensors=tensors,
        files=files,
        objects=objects,
        aliases=aliases,
        metadata=data["metadata"],
        created_unix_s=float(data["created_unix_s"]),
    )


def _file(data: dict[str, Any]) -> DataFile:
    sources, extent_sources = _sources(data)
    file = DataFile(
        name=_plain(data["name"]),
        size_bytes=_number(data["size_bytes"]),
        header_bytes=_number(data["header_bytes"]),
        header_crc32c=_number(data["header_crc32c"]),
        extent_ends=np.array(_counts(data["extent_ends"]), dtype=np.uint64),
        extent_crc32c=np.array(_counts(data["extent_crc32c"]), dtype=np.uint32),
        sources=sources,
        extent_sources=extent_sources,
    )
    ends = np.concatenate([np.array([file.header_bytes], dtype=np.uint64), file.extent_ends])
    if len(file.extent_ends) != len(file.extent_crc32c) or ends[-1] != file.size_bytes or np.any(ends[1:] <= ends[:-1]):
        raise ValueError(f"the extents of {file.name} do not tile its {file.size_bytes} bytes")
    return file


def _sources(data: dict[str, Any]) -> tuple[tuple[str, ...], np.ndarray | None]:
    """The inverse of :func:`_sources_json`."""
    if "sources" not in data:
        return (), None
    sources = tuple(map(_plain, data["sources"]))
    runs = [(_number(source), _number(count)) for source, count in data["extent_sources"]]
    if sum(count for _, count in runs) != len(data["extent_ends"]):
        raise ValueError(f"extent_sources of {data['name']} are not as many as its extents")
    if any(source > len(sources) for source, _ in runs):
        raise ValueError(f"extent_sources of {data['name']} name more than its {len(sources)} sources")
    held_by, counts = [source for source, _ in runs], [count for _, count in runs]
    return sources, np.repeat(np.array(held_by, dtype=np.uint32), counts)


class _TensorsOnDemand(Mapping[str, TensorInfo]):
    """The ``tensors`` of a manifest, each parsed and checked when it is first asked for."""

    def __init__(self, raw: bytes, index: _elastates.JsonIndex, files: Sequence[DataFile], where: str) -> None:
        self._raw = raw
        self._index = index
        self._read = _TensorReader(files).tensor
        self._where = where
        self._found: dict[str, TensorInfo] = {}

    def __getitem__(self, name: str) -> TensorInfo:
        found = self._found.get(name)
        if found is None:
            begin, end = self._range(name)
            found = _or_damage(self._where, lambda: self._read(name, json.loads(self._raw[begin:end])))
            self._found[name] = found
        return found

    def _range(self, name: str) -> tuple[int, int]:
        found: tuple[int, int] | None = self._index.find(name)
        if found is None:
            raise KeyError(name)
        return found

    def __contains__(self, name: object) -> bool:
        return self._index.find(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @cached_property
    def _names(self) -> dict[str, None]:
        """Each once, should a hostile text have one twice."""
        return dict.fromkeys(self._index.keys())


class _TensorReader:
    """Checks the ``tensors`` of a manifest; tens of thousands of them usually share a few shapes."""

    def __init__(self, files: Sequence[DataFile]) -> None:
        self._files = files
        self._payloads = [(file.header_bytes, file.size_bytes) for file in files]
        self._wholes: dict[tuple[int, ...], Box] = {}

    def tensor(self, name: str, data: dict[str, Any]) -> TensorInfo:
        shape = tuple(data["shape"])
        whole = self._wholes.get(shape)
        if whole is None:
            whole = self._wholes[shape] = Box.whole(_numbers(shape))
        dtype = data["dtype"]
        itemsize_bytes = dtype_of(dtype).itemsize
        shards = tuple([self._shard(name, dtype, itemsize_bytes, whole, *row) for row in data["shards"]])
        if len(shards) != 1 or shards[0].box is not whole:
            check_tiling(name, whole, shards)
        return TensorInfo(dtype, whole.sizes, shards)

    def _shard(
        self,
        name: str,
        dtype: str,
        itemsize_bytes: int,
        whole: Box,
        file: int,
        begin: int,
        end: int,
        offsets: list[int],
        sizes: list[int],
    ) -> Shard:
        if not (type(file) is type(begin) is type(end) is int and 0 <= file < len(self._payloads)):
            _numbers((file, begin, end))
            raise ValueError(f"{name}: data file {file} of {len(self._files)}")
        payload_begin, payload_end = self._payloads[file]
        if not payload_begin <= begin <= end <= payload_end:
            _numbers((begin, end))
            raise ValueError(f"{name}: bytes [{begin}, {end}) leave the payload of {self._files[file].name}")
        box = whole
        if tuple(sizes) != whole.sizes or tuple(offsets) != whole.offsets:
            box = Box(_numbers(offsets), _numbers(sizes))
            if not box.inside(whole.sizes):
                raise ValueError(f"{name}: {box} does not lie inside {list(whole.sizes)}")
        if end - begin != box.numel * itemsize_bytes:
            raise ValueError(f"{name}: {box} of {dtype} does not fill bytes [{begin}, {end})")
        return Shard(file, begin, end, box)


def check_tiling(name: str, whole: Box, shards: Sequence[Shard]) -> None:
    """Raise ``ValueError`` unless every element is stored exactly once: volumes add up and no two boxes meet."""
    if sum(s.box.numel for s in shards) != whole.numel:
        raise ValueError(f"{name}: the stored boxes hold {sum(s.box.numel for s in shards)} of {whole.numel} elements")
    ordered = sorted((s.box for s in shards if s.box.numel), key=lambda box: box.offsets)
    for i, box in enumerate(ordered):
        for other in ordered[i + 1 :]:
            if other.offsets and other.offsets[0] >= box.offsets[0] + box.sizes[0]:
                break
            if box.intersect(other):
                raise ValueError(f"{name}: boxes {box} and {other} overlap")


def _number(value: Any) -> int:
    if type(value) is not int or value < 0 or value >= 1 << 63:
        raise ValueError(f"{value!r} is not a count")
    return value


def _numbers(values: Any) -> tuple[int, ...]:
    for value in values:
        if type(value) is not int or not 0 <= value < 1 << 63:
            raise ValueError(f"{value!r} is not a count")
    return tuple(values)


def _counts(values: Any) -> list[int]:
    """A list of them, as long as it may be: all looked at together."""
    if not set(map(type, values)) <= {int} or not 0 <= min(values, default=0) <= max(values, default=0) < 1 << 63:
        for value in values:
            _number(value)
    return list(values)


def _plain(name: Any) -> str:
    """A file name that cannot leave the directory."""
    if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a plain file name")
    return name
