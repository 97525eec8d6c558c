"""Fetching: one checkpoint from a store into the local directory, every byte verified before it is published there."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from pathlib import Path

from datastates import manifest, storage_ops
from datastates.directory import CheckpointDirectory, step_name
from datastates.errors import DamagedCheckpointError, StorageFullError
from datastates.tiers.pace import Pace
from datastates.tiers.plan import FilePlan, Piece, damaged, plan_files
from datastates.tiers.shelf import Where, read_piece, read_where
from datastates.tiers.stores import Store
from datastates.tiers.stores.base import write_runs
from datastates.tiers.workers import Workers

logger = logging.getLogger("datastates")


def fetch(
    store: Store,
    directory: CheckpointDirectory,
    step: int,
    *,
    pace: Pace,
    threads: int,
    part_bytes: int,
    damaged_steps: Collection[int] = (),
) -> Path:
    """Bring a checkpoint into the local directory, whole and verified, or not at all; returns its path.

    The caller holds the directory's lock.

    Args:
        store: where from.
        directory: where to.
        step: which.
        pace: retries.
        threads: parts under way at once.
        part_bytes: size of a part.
        damaged_steps: a local checkpoint of one of these steps makes way, and is kept under another name.

    Raises:
        DamagedCheckpointError: what the store has is not what was written.
        StorageFullError: the local file system lacks the space.
    """
    name = step_name(step)
    raw = _manifest(store, name, pace)
    found = manifest.load(raw, f"{store.step_url(name)}/{manifest.FILE_NAME}")
    if found.step != step:
        raise DamagedCheckpointError(f"{store.step_url(name)} is of step {found.step}")
    files = plan_files(found, part_bytes)
    where = read_where(store, name, files, lambda file: pace.retried(lambda: store.get(file), f"reading {file}"))
    _check_space(directory.path, store.step_url(name), sum(file.stored_bytes for file in files) + len(raw))
    attempt = directory.begin(step)
    try:
        for file in files:
            _fetch_file(store, name, file, where, attempt / file.name, pace, threads)
        storage_ops.write_synced(attempt / manifest.FILE_NAME, raw)
        return directory.publish(attempt, step, damaged_steps)
    except BaseException:
        directory.discard(attempt)
        raise


def _manifest(store: Store, name: str, pace: Pace) -> bytes:
    try:
        return pace.retried(lambda: store.get(f"{name}/{manifest.FILE_NAME}"), f"reading {store.step_url(name)}")
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{store.step_url(name)} has gone") from error


def _fetch_file(store: Store, folder: str, file: FilePlan, where: Where, path: Path, pace: Pace, threads: int) -> None:
    url = f"{store.step_url(folder)}/{file.name}"
    local = storage_ops.PieceFile(path)

    def fetch_piece(piece: Piece) -> None:
        content = pace.retried(lambda: _verified(store, folder, file, piece, where, url), f"fetching {url}")
        write_runs(local, piece, content)

    with Workers(threads, "ds-fetch") as pool:
        pool.map(fetch_piece, file.pieces)
    local.set_length(file.size_bytes)
    storage_ops.sync_file(local)


def _verified(store: Store, folder: str, file: FilePlan, piece: Piece, where: Where, url: str) -> bytes:
    bad = list(piece.checks)
    for _ in range(2):  # a second time: what was damaged under way is whole where it comes from
        try:
            content = read_piece(store, folder, file, piece, where)
        except FileNotFoundError as error:
            raise DamagedCheckpointError(f"{url} is missing") from error
        bad = damaged(piece, content)
        if not bad:
            return content
    ranges = ", ".join(f"[{check.begin}, {check.end})" for check in bad[:8])
    raise DamagedCheckpointError(f"{url}: checksum mismatch in bytes {ranges}")


def free_bytes(path: Path) -> int:
    """What the file system of ``path`` has left for us."""
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize


def _check_space(path: Path, url: str, size_bytes: int) -> None:
    free = free_bytes(path)
    if free < size_bytes:
        raise StorageFullError(
            f"{path} has {free / 1e6:.0f} MB free, {url} takes {size_bytes / 1e6:.0f} MB; free some space"
        )
