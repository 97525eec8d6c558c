"""Checkpoints for the tools that speak Zarr: a view of any checkpoint, and compressed archives.

Needs the extra ``zarr`` (zarr-python, numcodecs, ml_dtypes); nothing of it is imported before it is used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datastates.zarr.store import CheckpointStore


def zarr_store(
    path: str | os.PathLike[str], *, verify: bool = True, chunk_mb: float = 4, cache_mb: float = 128
) -> CheckpointStore:
    """A checkpoint as a read-only Zarr store: one array for every tensor, of its global shape, in groups at the dots.

    ``zarr.open_group(datastates.zarr_store("runs/gpt"), mode="r")["model/layers/0/weight"][:16]``. Nothing is copied:
    chunks are read when they are asked for, and only the extents that hold them.

    Args:
        path: a checkpoint, or a directory of checkpoints: its newest one whose files are all there.
        verify: check every extent that holds wanted bytes, and so read it whole; else only wanted bytes are read, and
            trusted.
        chunk_mb: about how large chunks are, MB; they are whole rows where rows are smaller than that.
        cache_mb: the verified extents used last that are kept in memory, MB: neighbouring chunks share some.

    Raises:
        FileNotFoundError: there is no checkpoint at ``path``.
        DamagedCheckpointError: the manifest is damaged; later, by reads: bytes are not what was written.
        ImportError: zarr-python is missing.
    """
    return _module("store").CheckpointStore(path, verify=verify, chunk_mb=chunk_mb, cache_mb=cache_mb)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"datastates.zarr.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("zarr", "numcodecs", "ml_dtypes"):
            raise
        raise ImportError(
            f"Zarr views and archives need {error.name}, which is not installed: pip install 'elastates[zarr]'"
        ) from error
