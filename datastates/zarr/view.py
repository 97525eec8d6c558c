"""The Zarr hierarchy that a checkpoint is seen as: nodes, their metadata, and which box a key stands for. Pure.

Every tensor is one array of its global shape, whoever wrote which part of it. Tied names are arrays, too, over the same
bytes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from datastates.dtypes import dtype_of
from datastates.manifest import Manifest, TensorInfo
from datastates.zarr.grid import Grid, choose_chunk
from datastates.zarr.hierarchy import children_of, groups_of, node_paths
from datastates.zarr.metadata import (
    CONSOLIDATED_NODES,
    Json,
    array_document,
    bytes_codec,
    chunk_key,
    document_bytes,
    group_document,
)

DOCUMENT = "zarr.json"
ATTRIBUTE = "elastates"
"""Under this key, attributes hold what this package says of a node."""


class ArrayView(NamedTuple):
    """An array of the hierarchy, and the tensor behind it."""

    path: str
    name: str
    """The name that the tensor is stored under."""
    info: TensorInfo
    grid: Grid
    attributes: Json

    @property
    def chunk_bytes(self) -> int:
        return math.prod(self.grid.chunk) * dtype_of(self.info.dtype).itemsize

    def document(self) -> Json:
        codecs = [bytes_codec(self.info.dtype)]
        return array_document(self.path, self.info, self.grid.chunk, codecs, self.attributes)

    def key(self, index: tuple[int, ...]) -> str:
        return chunk_key(self.path, index, self.info.dtype)


class Chunk(NamedTuple):
    """What the key of a chunk stands for."""

    array: ArrayView
    at: tuple[int, ...]
    """Its index in the array's grid."""


class View:
    """All nodes of a checkpoint. Immutable."""

    def __init__(self, manifest: Manifest, python: Mapping[str, Any], chunk_bytes: int) -> None:
        """
        Args:
            manifest: of the checkpoint.
            python: typed JSON of one rank, by section.
            chunk_bytes: about how large chunks shall be.
        """
        stored = {name: name for name in manifest.tensors} | dict(manifest.aliases)
        paths = node_paths(stored)
        self.arrays = {
            path: _array(path, name, stored[name], manifest.tensors[stored[name]], chunk_bytes)
            for name, path in paths.items()
        }
        self.groups = children_of(groups_of(self.arrays), self.arrays)
        self._attributes = _root_attributes(manifest, python)

    def children(self, path: str) -> list[str]:
        """What stands right below ``path``, with the document of a node; empty if there is nothing."""
        if path in self.groups:
            return [DOCUMENT, *self.groups[path]]
        array = self.arrays.get(path)
        if array is not None:
            return [DOCUMENT, *(["c"] if any(True for _ in array.grid.indices()) else [])]
        return sorted({key[len(path) + 1 :].partition("/")[0] for key in self.keys_below(path)})

    def all_keys(self) -> Iterator[str]:
        """Every key: the documents of groups and arrays, and the chunks."""
        for group in self.groups:
            yield _document_key(group)
        for array in self.arrays.values():
            yield from _keys_of(array)

    def keys_below(self, path: str) -> Iterator[str]:
        """The keys that begin with ``path/``."""
        inside = f"{path}/" if path else ""
        owner = self._owner(path)
        if owner is not None:
            yield from (key for key in _keys_of(owner) if key.startswith(inside))
            return
        yield from (key for key in map(_document_key, self.groups) if key.startswith(inside))
        for array in self.arrays.values():
            if array.path.startswith(inside):
                yield from _keys_of(array)

    def document(self, key: str) -> bytes | None:
        """The bytes of a ``zarr.json``; ``None`` if no node has that key."""
        path, _, leaf = key.rpartition("/")
        if leaf != DOCUMENT:
            return None
        if path == "":
            return self._root_document
        if path in self.groups:
            return document_bytes(group_document({}))
        array = self.arrays.get(path)
        return None if array is None else document_bytes(array.document())

    def chunk(self, key: str) -> Chunk | None:
        """The chunk behind a key; ``None`` if it is not the key of one."""
        array = self._owner(key)
        if array is None:
            return None
        numbers = key[len(array.path) + 1 :].split("/")[1:]
        rank = len(array.grid.shape)
        index = tuple(int(number) for number in numbers[:rank] if number.isdecimal())
        return Chunk(array, index) if array.grid.has(index) and key == array.key(index) else None

    def _owner(self, key: str) -> ArrayView | None:
        """The array that a key, or a path inside, belongs to."""
        path = key
        while path:
            if path in self.arrays:
                return self.arrays[path]
            path = path.rpartition("/")[0]
        return None

    @functools.cached_property
    def _root_document(self) -> bytes:
        nodes = {path: group_document({}) for path in self.groups if path}
        if len(nodes) + len(self.arrays) > CONSOLIDATED_NODES:
            return document_bytes(group_document(self._attributes))
        nodes |= {path: array.document() for path, array in self.arrays.items()}
        return document_bytes(group_document(self._attributes, nodes))


def _array(path: str, name: str, stored: str, info: TensorInfo, chunk_bytes: int) -> ArrayView:
    chunk = choose_chunk(info.shape, dtype_of(info.dtype).itemsize, chunk_bytes, row_step(info))
    about: Json = {"name": name, "dtype": info.dtype}
    if stored != name:
        about["tied_to"] = stored
    return ArrayView(path, stored, info, Grid(info.shape, chunk), {ATTRIBUTE: about})


def row_step(info: TensorInfo) -> int:
    """The number of rows that every stored box begins at a multiple of; 0 if all begin at row 0."""
    return math.gcd(*(shard.box.offsets[0] for shard in info.shards if shard.box.numel and shard.box.offsets))


def _root_attributes(manifest: Manifest, python: Mapping[str, Any]) -> Json:
    about = {
        "step": manifest.step,
        "num_ranks": manifest.num_ranks,
        "created_unix_s": manifest.created_unix_s,
        "metadata": dict(manifest.metadata),
        "aliases": dict(manifest.aliases),
    }
    return {ATTRIBUTE: about, "python": dict(python)}


def _document_key(path: str) -> str:
    return f"{path}/{DOCUMENT}" if path else DOCUMENT


def _keys_of(array: ArrayView) -> Iterator[str]:
    yield _document_key(array.path)
    yield from map(array.key, array.grid.indices())
