"""Checkpoints for the tools that speak Zarr: a view of any checkpoint, and compressed archives.

Needs the extra ``zarr`` (zarr-python, numcodecs, ml_dtypes); nothing of it is imported before it is used.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datastates.reader import CheckpointReader, open_checkpoint

if TYPE_CHECKING:
    from datastates.zarr.archive_reader import ArchiveReader
    from datastates.zarr.archiving import ArchiveReport
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


def archive(
    checkpoint: str | os.PathLike[str] | CheckpointReader,
    destination: str | os.PathLike[str],
    *,
    codec: str = "auto",
    min_mb_s: float = 100,
    shard_mb: float = 64,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ArchiveReport:
    """Write a checkpoint as a compressed Zarr hierarchy (version 3, sharded), which tensorstore and zarr-python open.

    Every chunk carries its checksum, the root names every file with its size and checksum, and the whole appears at
    once, synced, or not at all.

    Args:
        checkpoint: a checkpoint, a directory of checkpoints (its newest whole one), or an open reader.
        destination: a new directory.
        codec: ``"auto"`` measures all codecs on a sample of every kind of tensor and takes the smallest result;
            or one of ``none``, ``zstd``, ``blosc-lz4-shuffle``, ``blosc-lz4-bitshuffle``, ``blosc-zstd-shuffle``,
            ``blosc-zstd-bitshuffle`` for all.
        min_mb_s: ``"auto"`` leaves codecs out that compress more slowly than this, MB/s on one thread.
        shard_mb: the most that a file holds uncompressed, MB; a thread has one in memory.
        threads: shards in work at a time; as many as processors by default, 8 at most.
        progress: called with (bytes done, bytes in all) of uncompressed tensor data.

    Returns:
        What was written, and what was measured.

    Raises:
        FileExistsError: ``destination`` exists.
        DamagedCheckpointError: the checkpoint is not what was written; there is no archive then.
        ImportError: zarr-python's companions are missing.
    """
    module = _module("archiving")
    reader = checkpoint if isinstance(checkpoint, CheckpointReader) else open_checkpoint(checkpoint)
    found: ArchiveReport = module.archive(
        reader,
        Path(destination),
        codec=codec,
        min_mb_s=min_mb_s,
        shard_mb=shard_mb,
        threads=threads or _default_threads(),
        progress=progress,
    )
    return found


def open_archive(path: str | os.PathLike[str], *, threads: int | None = None) -> ArchiveReader:
    """Open an archive for reading: names, tensors and parts of them, Python state, :meth:`~CheckpointReader.verify`.

    Raises:
        FileNotFoundError: there is no archive at ``path``.
        DamagedCheckpointError: its index is not what was written, or this is another Zarr hierarchy.
        ImportError: numcodecs is missing.
    """
    found: ArchiveReader = _module("archive_reader").ArchiveReader(Path(path), threads=threads or _default_threads())
    return found


def unarchive(
    archive: str | os.PathLike[str], directory: str | os.PathLike[str], *, threads: int | None = None
) -> Path:
    """Write an archive's content as a checkpoint of its step in ``directory``, verified and synced; returns its path.

    Tensors, Python state of all ranks, tied names and metadata are those of the checkpoint that was archived, bit for
    bit; all tensor data is in one file.

    Raises:
        FileExistsError: the step is there already.
        DirectoryBusyError: a job is writing checkpoints to ``directory``.
        DamagedCheckpointError: the archive is not what was written; there is no checkpoint then.
    """
    threads = threads or _default_threads()
    found: Path = _module("unarchiving").unarchive(
        open_archive(archive, threads=threads), Path(directory), threads=threads
    )
    return found


def restore_archive(
    archive: str | os.PathLike[str],
    state: Mapping[str, Any],
    *,
    strict: bool = True,
    only: str | list[str] | None = None,
    allow_pickle: bool = False,
    threads: int | None = None,
    collective: bool = True,
    timeout_s: float = 120,
) -> int:
    """Bring ``state`` to what an archive holds, in place, as :meth:`Checkpointer.restore` does from checkpoints.

    Collective: every rank calls it and reads its own parts, whatever the number of ranks that saved. All succeed, or
    all raise.

    Args:
        archive: its directory.
        state, strict, only, allow_pickle: as for :meth:`Checkpointer.restore`.
        threads: chunks are unpacked by so many.
        collective: ``False``: this rank alone; should it raise, it has to end the job.
        timeout_s: longest wait for the slowest rank, seconds, when all have opened, matched and loaded.

    Returns:
        The next step to do: the stored step + 1.

    Raises:
        RestoreError: some rank found damage or failed, and the live state may be half overwritten.
        ValueError: the state does not fit the archive; no value was changed.
        CoordinationError: some rank did not answer in time.
    """
    module = _module("unarchiving")
    found: int = module.restore_archive(
        lambda: open_archive(archive, threads=threads),
        state,
        strict=strict,
        only=[only] if isinstance(only, str) else only,
        allow_pickle=allow_pickle,
        collective=collective,
        timeout_s=timeout_s,
    )
    return found


def _default_threads() -> int:
    return min(8, len(os.sched_getaffinity(0)))


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"datastates.zarr.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("zarr", "numcodecs", "ml_dtypes"):
            raise
        raise ImportError(
            f"Zarr views and archives need {error.name}, which is not installed: pip install 'elastates[zarr]'"
        ) from error
