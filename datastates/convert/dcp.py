"""Directories of stock ``torch.distributed.checkpoint``: written and read without a process group, tensor by tensor."""

from __future__ import annotations

import io
import itertools
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem, WriteItem, WriteItemType

from datastates.convert.dcp_metadata import DirectoryReader, read_metadata
from datastates.convert.publish import new_directory
from datastates.convert.source import Entry, Progress, Source, Stream, batches
from datastates.convert.tree import Incoming, Tree, default_prefix, named_state, parse_ties, tied
from datastates.convert.unpickling import torch_load

METADATA_NAME = ".metadata"
MAX_LIST = 1 << 24
"""Beyond so many items, a list index of the metadata is taken for damage."""
TIES_NAME = "elastates_ties.json"
"""Tied names -> the tensor's; DCP has no place for it, and does not look at other files."""


def export_dcp(
    tree: Tree, source: Source, path: Path, ties: Mapping[str, str], progress: Progress | None = None
) -> None:
    """Write a directory that ``dcp.load`` takes; in memory is one tensor at a time.

    Args:
        tree: nested dicts; tensors in it are on the meta device.
        source: their values. Names are the tree's keys joined by dots, as DCP flattens them.
        path: the new directory.
        ties: further names of one tensor -> its first; noted beside DCP's files for an import.
        progress: called with bytes done and bytes in all.

    Raises:
        FileExistsError: there is something at ``path``.
    """
    with new_directory(path) as directory, _plain_errors():
        planner = _StreamingPlanner(source, progress)
        writer = dcp.FileSystemWriter(directory, sync_files=False)  # the whole directory is synced when it is complete
        (directory / TIES_NAME).write_text(json.dumps(ties))
        dcp.save(tree, storage_writer=writer, planner=planner, no_dist=True)


class _StreamingPlanner(DefaultSavePlanner):
    """Fetches values when the writer asks for them."""

    def __init__(self, source: Source, progress: Progress | None) -> None:
        super().__init__()
        self._source = source
        self._progress = progress
        self._done = 0

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        name = write_item.index.fqn
        if write_item.type == WriteItemType.BYTE_IO or name not in self._source.entries:  # a Python value
            return super().resolve_data(write_item)
        entry = self._source.entries[name]
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        fill(tensor, self._source, name)
        self._done += entry.nbytes
        if self._progress is not None:
            self._progress(self._done, self._source.nbytes)
        return tensor


def fill(tensor: torch.Tensor, source: Source, name: str) -> None:
    """Put the values of ``name`` into a contiguous tensor of its shape."""
    flat, at = tensor.view(-1), 0
    for _, piece in source.stream([name]):
        flat[at : at + piece.numel()].copy_(piece.reshape(-1))
        at += piece.numel()


def dcp_state(path: Path, prefix: str | None = None, allow_pickle: bool = False) -> Incoming:
    """The state in a DCP directory.

    Args:
        path: the directory.
        prefix: put in front of every name; ``None``: ``model.`` if the state is one module's, else nothing.
        allow_pickle: read metadata and Python values with pickle, which can run code, and not as ``weights_only=True``
            does.

    Raises:
        ValueError: the directory has no metadata, or metadata or a Python value that only pickle can read.
    """
    if not (path / METADATA_NAME).exists():
        raise ValueError(f"{path} has no {METADATA_NAME}: expected a directory written by torch.distributed.checkpoint")
    reader = DirectoryReader(path, read_metadata(path / METADATA_NAME, allow_pickle))
    metadata = reader.metadata
    stored = metadata.state_dict_metadata
    paths = metadata.planner_data or {name: (name,) for name in stored}
    python = _read_python(reader, [name for name in stored if name not in _tensors(metadata)], allow_pickle)
    tree: Tree = {}
    name_of: dict[int, str] = {}
    for name in stored:
        value = python.get(name)
        if name not in python:
            info = _tensors(metadata)[name]
            value = torch.empty(info.size, dtype=info.properties.dtype, device="meta")
            name_of[id(value)] = name
        put_path(tree, paths[name], value)
    state = named_state(tree, default_prefix(tree, prefix))
    incoming = Incoming(_source(reader, state.tensors, name_of), state.python, state.aliases)
    return tied(incoming, parse_ties((path / TIES_NAME).read_text()) if (path / TIES_NAME).exists() else {})


def _tensors(metadata: Metadata) -> Mapping[str, TensorStorageMetadata]:
    return {k: info for k, info in metadata.state_dict_metadata.items() if isinstance(info, TensorStorageMetadata)}


def _source(reader: DirectoryReader, tensors: Mapping[str, torch.Tensor], name_of: Mapping[int, str]) -> Source:
    """Tensors in batches, as every load plans anew what to read; those inside pickled values have been read already."""
    entries = {name: Entry(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    stored = {name: name_of[id(tensor)] for name, tensor in tensors.items() if id(tensor) in name_of}
    if lost := [name for name, tensor in tensors.items() if name not in stored and tensor.is_meta]:
        raise ValueError(f"{reader.path} has no values for {lost[0]}: it was saved on the meta device")

    def stream(wanted: Sequence[str]) -> Stream:
        for batch in batches(wanted, entries):
            there = [name for name in batch if name in stored]
            values = {stored[name]: torch.empty(entries[name].shape, dtype=entries[name].dtype) for name in there}
            _load(reader, values, DefaultLoadPlanner(flatten_state_dict=False))
            yield from ((name, values[stored[name]] if name in stored else tensors[name]) for name in batch)

    return Source(entries, stream)


def _read_python(reader: DirectoryReader, names: Sequence[str], allow_pickle: bool) -> dict[str, Any]:
    values: dict[str, Any] = dict.fromkeys(names)
    _load(reader, values, _PythonPlanner(Path(reader.path), allow_pickle))
    return values


class _PythonPlanner(DefaultLoadPlanner):
    """Reads Python values without running code, unless told otherwise; stock DCP always unpickles."""

    def __init__(self, path: Path, allow_pickle: bool) -> None:
        super().__init__(flatten_state_dict=False)
        self._path = path
        self._allow_pickle = allow_pickle

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        self.original_state_dict[name] = torch_load(value, f"{name} of {self._path}", self._allow_pickle)


def _load(reader: DirectoryReader, values: dict[str, Any], planner: DefaultLoadPlanner) -> None:
    if values:
        with _plain_errors():
            dcp.load(values, storage_reader=reader, planner=planner, no_dist=True)


def put_path(tree: Any, path: Sequence[str | int], value: Any) -> None:
    """Put ``value`` where a path of dict keys and list indices leads; makes what is missing on the way."""
    if any(isinstance(key, int) and not 0 <= key < MAX_LIST for key in path):
        raise ValueError(f"{path} is no path of dict keys and list indices")
    for key, following in itertools.pairwise(path):
        empty: Any = [] if isinstance(following, int) else {}
        if isinstance(tree, list):
            tree.extend([None] * (int(key) + 1 - len(tree)))
            tree[int(key)] = tree[int(key)] if tree[int(key)] is not None else empty
            tree = tree[int(key)]
        else:
            tree = tree.setdefault(key, empty)
    if isinstance(tree, list):
        tree.extend([None] * (int(path[-1]) + 1 - len(tree)))
    tree[path[-1]] = value


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What went wrong on the only rank there is, without DCP's wrapping; and no warning that there is only one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        try:
            yield
        except CheckpointException as error:
            (cause, _), *_ = error.failures.values()
            raise cause from error
