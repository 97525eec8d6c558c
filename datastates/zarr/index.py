"""The index of an archive, in the root's ``zarr.json``: its tensors, its files, and what proves them whole.

Pure functions. An archive is a Zarr hierarchy and nothing else: Python state is arrays of ``uint8``, and what Zarr has
no place for stands in the attributes of the root.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datastates.dtypes import dtype_of
from datastates.manifest import Manifest, ObjectsFile, TensorInfo
from datastates.zarr.grid import Grid
from datastates.zarr.metadata import Json, document_bytes, extra_dims
from datastates.zarr.shard_file import Layout
from datastates.zarr.view import ATTRIBUTE

FORMAT = "elastates-archive"
FORMAT_VERSION = 1
MAX_CHUNK_BYTES = 1 << 30
"""No archive has larger ones; memory for one is taken before anything is unpacked."""


@dataclass(frozen=True)
class Index:
    """What an archive says of itself."""

    manifest: Manifest
    """Tensors without stored boxes, no data files; ``objects`` are the arrays of Python state, by path."""
    paths: Mapping[str, str]
    """Tensor name -> path of its array."""
    files: Mapping[str, tuple[int, int]]
    """Every file but the root's ``zarr.json``: key -> (bytes, CRC32C)."""


def index_attributes(index: Index) -> Json:
    """The index as it stands in the attributes of the root, but for its digest."""
    manifest = index.manifest
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "step": manifest.step,
        "num_ranks": manifest.num_ranks,
        "created_unix_s": manifest.created_unix_s,
        "metadata": dict(manifest.metadata),
        "aliases": dict(manifest.aliases),
        "tensors": {
            name: {"path": index.paths[name], "dtype": info.dtype, "shape": list(info.shape)}
            for name, info in manifest.tensors.items()
        },
        "objects": [{"path": o.name, "size_bytes": o.size_bytes, "crc32c": o.crc32c} for o in manifest.objects],
        "files": {key: list(found) for key, found in index.files.items()},
    }


def seal(root: Json) -> bytes:
    """The bytes of the root's ``zarr.json``, with the SHA-256 of all it says."""
    attributes = root["attributes"]
    about = {**attributes[ATTRIBUTE], "digest": digest(root)}
    return document_bytes({**root, "attributes": {**attributes, ATTRIBUTE: about}})


def digest(root: Json) -> str:
    """Of a root's document without its digest: SHA-256 of its JSON with sorted keys and no spaces."""
    text = json.dumps(root, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def parse(raw: bytes) -> Index:
    """The index from a root's ``zarr.json``, not trusted.

    Raises:
        ValueError: this is no archive, one of a newer version, or not what was written.
    """
    try:
        root = json.loads(raw)
        about = root["attributes"][ATTRIBUTE]
        if about["format"] != FORMAT:
            raise ValueError(f"format is {about['format']!r}, expected {FORMAT!r}")
        if about["format_version"] > FORMAT_VERSION:
            raise ValueError(
                f"archive version {about['format_version']} is newer than {FORMAT_VERSION}, the newest this reader "
                "knows; upgrade elastates"
            )
        expected = about.pop("digest")
        if digest(root) != expected:
            raise ValueError("its SHA-256 does not match: truncated or altered")
        return _index(about)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"this is not the zarr.json of an archive: {error!r}") from error


def _index(about: dict[str, Any]) -> Index:
    tensors = {name: TensorInfo(t["dtype"], tuple(map(_count, t["shape"])), ()) for name, t in about["tensors"].items()}
    for info in tensors.values():
        dtype_of(info.dtype)
    for alias, name in about["aliases"].items():
        if name not in tensors:
            raise ValueError(f"{alias} is an alias of {name}, which is not stored")
    objects = tuple(
        ObjectsFile(_key(o["path"]), _count(o["size_bytes"]), _count(o["crc32c"])) for o in about["objects"]
    )
    if len(objects) != about["num_ranks"] or not objects:
        raise ValueError(f"Python state of {len(objects)} ranks, expected {about['num_ranks']}")
    manifest = Manifest(
        step=_count(about["step"]),
        num_ranks=len(objects),
        tensors=tensors,
        files=(),
        objects=objects,
        aliases=about["aliases"],
        metadata=about["metadata"],
        created_unix_s=float(about["created_unix_s"]),
    )
    files = {_key(key): (_count(size), _count(crc)) for key, (size, crc) in about["files"].items()}
    return Index(manifest, {name: _key(t["path"]) for name, t in about["tensors"].items()}, files)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r} is not a count")
    return value


def _key(key: Any) -> str:
    """A key that cannot leave the archive."""
    if type(key) is not str or any(part in ("", ".", "..") for part in key.split("/")) or "\0" in key:
        raise ValueError(f"{key!r} is not a path inside the archive")
    return key


def layout_of(document: Json, info: TensorInfo) -> tuple[Layout, list[Json]]:
    """How an array lies in files, and the codecs behind ``bytes``, from its ``zarr.json``.

    Raises:
        ValueError: archives do not hold such arrays.
    """
    try:
        extra = len(extra_dims(info.dtype))
        files = document["chunk_grid"]["configuration"]["chunk_shape"]
        codecs, chunks = document["codecs"], files
        if codecs[0]["name"] == "sharding_indexed":
            chunks = codecs[0]["configuration"]["chunk_shape"]
            codecs = codecs[0]["configuration"]["codecs"]
        rank = len(info.shape)
        if codecs[0]["name"] != "bytes" or {len(files), len(chunks)} != {rank + extra}:
            raise ValueError("it begins with another codec than bytes, or its chunks have other dims")
        grids = [Grid(info.shape, tuple(chunk[:rank])) for chunk in (files, chunks)]
        for outer, inner, extent in zip(grids[0].chunk, grids[1].chunk, info.shape, strict=True):
            whole = max(1, extent)
            if not 1 <= _count(inner) <= whole or _count(outer) % inner or outer > -(-whole // inner) * inner:
                raise ValueError(f"chunks of {chunks} in files of {files} are none of a tensor of {list(info.shape)}")
        layout = Layout(grids[0], grids[1], dtype_of(info.dtype).itemsize)
        if layout.chunk_bytes > MAX_CHUNK_BYTES:
            raise ValueError(f"chunks of {layout.chunk_bytes} bytes, expected at most {MAX_CHUNK_BYTES}")
        return layout, codecs[1:]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"no array of an archive: {error!r}") from error
