"""Back from an archive: into a live state, or as a checkpoint like any other."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from datastates import manifest, storage_ops
from datastates.agreement import SavePlan, make_save_plan
from datastates.config import CheckpointerConfig
from datastates.coordination import Channel, Coordinator
from datastates.data_file import StoredPiece
from datastates.directory import CheckpointDirectory, data_file_name, objects_file_name
from datastates.dtypes import dtype_of
from datastates.errors import CoordinationError, DamagedCheckpointError
from datastates.plan import Held
from datastates.restore import Vote, apply_on_all, half_overwritten, load_on_all
from datastates.saved import SavedCheckpoint
from datastates.zarr.archive_reader import ArchiveReader
from datastates.zarr.threads import run_in_threads
from oneflow_sbp import Box

import _elastates

logger = logging.getLogger("datastates")


class SavedArchive(SavedCheckpoint):
    """An archive as the providers of one rank see it."""

    def __init__(
        self, reader: ArchiveReader, rank: int, allow_pickle: bool, only: Sequence[str] | None, strict: bool
    ) -> None:
        self._reader = reader
        super().__init__(reader.path, reader.manifest, rank, allow_pickle, only, strict)

    def _objects_text(self) -> bytes:
        return self._reader.objects_text(self.saved_rank)


def restore_archive(
    open_reader: Callable[[], ArchiveReader],
    state: Mapping[str, Any],
    *,
    strict: bool,
    only: Sequence[str] | None,
    allow_pickle: bool,
    collective: bool,
    timeout_s: float,
) -> int:
    """See :func:`datastates.restore_archive`."""
    with _vote(collective, timeout_s) as vote:
        reader = vote.all_agree(open_reader)
        saved = vote.all_agree(lambda: SavedArchive(reader, vote.rank, allow_pickle, only, strict))
        try:
            load_on_all(saved, vote, state, reader.load)
        except DamagedCheckpointError as error:
            raise half_overwritten(reader.path, error) from error
        apply_on_all(saved, vote, state)
        return reader.manifest.step + 1


@contextlib.contextmanager
def _vote(collective: bool, timeout_s: float) -> Iterator[Vote]:
    """Votes of all ranks, or of this one alone, which is the same rank then."""
    coordinator = Coordinator(timeout_s, alone=not collective)
    channel = coordinator.channel()
    vote = Vote(channel, timeout_s)
    if not collective and dist.is_available() and dist.is_initialized():
        vote.rank = dist.get_rank()
    try:
        yield vote
    except CoordinationError:
        raise  # nobody answers: there is no waiting for the others
    except BaseException:
        _leave(channel, timeout_s)
        raise
    else:
        _leave(channel, timeout_s)
    finally:
        coordinator.close()


def _leave(channel: Channel, timeout_s: float) -> None:
    """Rank 0 hosts the store: it stays until the others have had their last answer."""
    try:
        channel.leave(timeout_s)
    except CoordinationError as error:
        logger.warning("leaving: %s", error)


def unarchive(reader: ArchiveReader, directory: Path, *, threads: int) -> Path:
    """See :func:`datastates.unarchive`."""
    step = reader.manifest.step
    storage_ops.make_directories(directory)
    checkpoints = CheckpointDirectory(directory)
    if checkpoints.of_step(step).exists():
        raise FileExistsError(f"{checkpoints.of_step(step)} exists and is not overwritten; use another directory")
    checkpoints.lock()
    try:
        attempt = checkpoints.begin(step)
        try:
            content = _write_files(reader, attempt, threads)
            storage_ops.write_synced(attempt / manifest.FILE_NAME, manifest.dump(content))
            return checkpoints.publish(attempt, step)
        except BaseException:
            checkpoints.discard(attempt)
            raise
    finally:
        checkpoints.unlock()


def _write_files(reader: ArchiveReader, attempt: Path, threads: int) -> manifest.Manifest:
    """One data file, and the Python state of every rank that saved; returns their manifest."""
    plan = _plan(reader.manifest)
    path = attempt / data_file_name(0)
    _write_data(reader, plan, path, threads)
    objects = []
    for rank in range(reader.manifest.num_ranks):
        text = reader.objects_text(rank)
        storage_ops.write_synced(attempt / objects_file_name(rank), text)
        objects.append(manifest.ObjectsFile(objects_file_name(rank), len(text), _elastates.crc32c(text)))
    return manifest.Manifest(
        step=reader.manifest.step,
        num_ranks=reader.manifest.num_ranks,
        tensors=plan.tensors,
        files=(_describe(plan, path),),
        objects=tuple(objects),
        aliases=reader.manifest.aliases,
        metadata=reader.manifest.metadata,
        created_unix_s=reader.manifest.created_unix_s,
    )


def _plan(archived: manifest.Manifest) -> SavePlan:
    held = [
        Held(name, info.dtype, dtype_of(info.dtype).itemsize, info.shape, Box.whole(info.shape), 0)
        for name, info in archived.tensors.items()
    ]
    return make_save_plan([held], archived.aliases, [frozenset()], CheckpointerConfig().chunk_bytes)


def _write_data(reader: ArchiveReader, plan: SavePlan, path: Path, threads: int) -> None:
    file = plan.files[0]
    storage_ops.write_synced(path, file.header)
    data = storage_ops.PieceFile(path)
    data.set_length(file.size_bytes)
    for _ in run_in_threads(_parts(reader, file.stored, data), threads):
        pass
    storage_ops.sync_file(data)


def _parts(
    reader: ArchiveReader, stored: Sequence[StoredPiece], data: storage_ops.PieceFile
) -> Iterator[Callable[[], None]]:
    """One job for every file of the archive."""
    for piece in stored:
        for index in reader.array(piece.piece.name).layout.files.indices():
            yield functools.partial(_copy_part, reader, piece, index, data)


def _copy_part(reader: ArchiveReader, stored: StoredPiece, index: tuple[int, ...], data: storage_ops.PieceFile) -> None:
    name = stored.piece.name
    layout = reader.array(name).layout
    box = layout.files.inner(index)
    run = box.flat_range_in(stored.piece.box)
    if run is None:
        raise DamagedCheckpointError(f"{reader.path}: file {index} of {name} is no run of elements")
    raw = reader.read_file(name, index).reshape(-1).view(torch.uint8).numpy().data
    data.write(raw, stored.begin + run[0] * layout.itemsize_bytes)


def _describe(plan: SavePlan, path: Path) -> manifest.DataFile:
    """The data file with the checksums of its extents: of what it now holds."""
    file = plan.files[0]
    content = np.memmap(path, dtype=np.uint8, mode="r", shape=(file.size_bytes,))
    bounds = [len(file.header), *file.extent_ends.tolist()]
    crcs = [_elastates.crc32c(content[a:b]) for a, b in itertools.pairwise(bounds)]
    return file.written(path.name, crcs)
