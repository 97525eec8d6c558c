"""Files of ``torch.save``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from datastates.convert.publish import new_file
from datastates.convert.source import Entry, Progress, Source
from datastates.convert.tree import Incoming, Tree, default_prefix, in_memory, named_state
from datastates.convert.unpickling import torch_load

IN_MEMORY_BYTES = 1 << 30
"""Larger states are gathered in a mapped scratch file beside the result: the kernel may write its pages back."""


def export_torch(tree: Tree, path: Path) -> None:
    """``torch.save`` a tree whose tensors hold their values.

    Raises:
        FileExistsError: there is something at ``path``.
    """
    with new_file(path) as stream:
        torch.save(tree, stream)


def gathered(source: Source, beside: Path, progress: Progress | None = None) -> dict[str, torch.Tensor]:
    """All tensors of a source, each with a storage of its own."""
    mapped = source.nbytes > IN_MEMORY_BYTES
    found = {name: _empty(entry, beside if mapped else None) for name, entry in source.entries.items()}
    filled = dict.fromkeys(found, 0)
    done = 0
    for name, piece in source.stream(list(found)):
        begin = filled[name]
        filled[name] += piece.numel()
        found[name].view(-1)[begin : filled[name]].copy_(piece.reshape(-1))
        done += piece.nbytes
        if progress is not None:
            progress(done, source.nbytes)
    return found


def _empty(entry: Entry, beside: Path | None) -> torch.Tensor:
    if beside is None or not entry.nbytes:
        return torch.empty(entry.shape, dtype=entry.dtype)
    with tempfile.NamedTemporaryFile(prefix=".export-", dir=beside) as scratch:  # gone by name, there while mapped
        storage = torch.UntypedStorage.from_file(scratch.name, shared=True, nbytes=entry.nbytes)
    return torch.empty(0, dtype=entry.dtype).set_(storage).view(entry.shape)  # type: ignore[arg-type]


def torch_state(path: Path, prefix: str | None = None, allow_pickle: bool = False) -> Incoming:
    """The state in a file of ``torch.save``; tensors stay in the file until they are wanted.

    Args:
        path: the file.
        prefix: put in front of every name; ``None``: ``model.`` if the state is one module's, else nothing.
        allow_pickle: read values that only pickle can read, which can run code.

    Raises:
        ValueError: no such file format, a pickle of more than plain values, or no dict of state.
    """
    tree = torch_load(path, str(path), allow_pickle, mmap=True)
    if not isinstance(tree, Mapping):
        raise ValueError(f"{path} holds a {type(tree).__name__}, expected a dict of state")
    return in_memory(named_state(dict(tree), default_prefix(tree, prefix)))
