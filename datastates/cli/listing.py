"""What ``ls`` lists: the checkpoints of a directory or behind a URL, without reading their data."""

from __future__ import annotations

import time
from pathlib import Path

from datastates.cli.ls import Contents, Listed
from datastates.directory import CheckpointDirectory, read_manifest
from datastates.errors import DamagedCheckpointError
from datastates.manifest import Manifest
from datastates.remote import RemoteCheckpoints


def of_directory(path: Path) -> Contents:
    """A directory; what goes while we look, as under a job that prunes, is left out."""
    directory = CheckpointDirectory(path)
    listed = [found for step in directory.steps() if (found := look_at(directory.of_step(step))) is not None]
    return Contents(
        listed,
        [entry.name for entry in directory.leftovers()],
        [entry.name for entry in directory.set_aside()],
        directory.holder(),
    )


def of_url(url: str) -> Contents:
    """A place that fsspec knows."""
    remote = RemoteCheckpoints(url)
    steps = remote.steps()
    if not steps:
        raise FileNotFoundError(f"{url} holds no checkpoint")
    return Contents([_look_at_remote(remote, step) for step in steps], [], [], None)


def look_at(path: Path) -> Listed | None:
    """One checkpoint, without reading its data; ``None``: it has gone."""
    step = int(path.name.removeprefix("step-"))
    try:
        size_bytes = sum(allocated_bytes(entry) for entry in path.iterdir())
        changed_s = path.stat().st_mtime
        return _listed(step, str(path), read_manifest(path), size_bytes)
    except FileNotFoundError:
        return None
    except DamagedCheckpointError as error:
        if not path.exists():
            return None
        return Listed(step, str(path), "damaged", size_bytes, time.time() - changed_s, None, None, str(error))


def _look_at_remote(remote: RemoteCheckpoints, step: int) -> Listed:
    url, size_bytes = remote.url_of(step), remote.size_bytes(step)
    try:
        return _listed(step, url, remote.manifest(step), size_bytes)
    except DamagedCheckpointError as error:
        return Listed(step, url, "damaged", size_bytes, 0.0, None, None, str(error))


def _listed(step: int, path: str, manifest: Manifest, size_bytes: int) -> Listed:
    state = "delta" if is_delta(manifest) else "whole"
    age_s = time.time() - manifest.created_unix_s
    return Listed(step, path, state, size_bytes, age_s, manifest.num_ranks, len(manifest.tensors), None)


def allocated_bytes(path: Path) -> int:
    """What a file takes: a delta's data file has holes."""
    stat = path.stat()
    return min(stat.st_size, stat.st_blocks * 512)


def is_delta(manifest: Manifest) -> bool:
    """Whether some of a checkpoint's data is in files that an older checkpoint wrote."""
    return any(file.sources for file in manifest.files)
