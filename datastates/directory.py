"""The checkpoint directory: names, the publish sequence, what is there, and what may go.

step-00000012/            published: whole, never changed afterwards
.tmp-step-00000013-<id>/  an attempt in flight, or what a dead job left
.old-step-00000002-<id>/  on its way out
damaged-step-00000007-<id>/  found damaged and moved aside when its step was taken again
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import socket
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from datastates import manifest, storage_ops
from datastates.errors import DamagedCheckpointError, DirectoryBusyError

import _elastates

_STEP = re.compile(r"step-(\d{8,})")
_LEFTOVER = re.compile(r"\.(tmp|old)-step-\d{8,}-[0-9a-f]{8}|\.nonce-[0-9a-f]{32}")

_ASIDE = re.compile(r"damaged-step-\d{8,}-[0-9a-f]{8}")


def step_name(step: int) -> str:
    """Name of a published checkpoint."""
    return f"step-{step:08d}"


def data_file_name(rank: int) -> str:
    """Name of the tensor data that ``rank`` writes."""
    return f"rank-{rank:05d}.safetensors"


def delta_file_name(rank: int) -> str:
    """Name of tensor data that ``rank`` writes with holes; not one that readers of safetensors files look for."""
    return f"rank-{rank:05d}.safetensors.delta"


def source_file_name(rank: int, step: int) -> str:
    """Name, in the checkpoints of later steps, of what ``rank`` wrote at ``step``."""
    return f"rank-{rank:05d}.from-step-{step:08d}.base"


def objects_file_name(rank: int) -> str:
    """Name of the Python state of ``rank``."""
    return f"rank-{rank:05d}.objects.json"


class CheckpointDirectory:
    """One directory of checkpoints. Reading needs nothing; writing takes its lock first, on rank 0."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock_fd: int | None = None

    def steps(self) -> list[int]:
        """Published steps, ascending. Says nothing about damage."""
        if not self.path.is_dir():
            return []
        found = (_STEP.fullmatch(entry.name) for entry in self.path.iterdir())
        return sorted(int(match[1]) for match in found if match)

    @staticmethod
    def is_step(path: Path) -> bool:
        """Whether ``path`` is named like a published checkpoint."""
        return path.is_dir() and _STEP.fullmatch(path.name) is not None

    def of_step(self, step: int) -> Path:
        return self.path / step_name(step)

    def leftovers(self) -> list[Path]:
        """Attempts and directories on their way out: a live writer's, if there is one, else a dead one's."""
        return sorted(entry for entry in self.path.iterdir() if _LEFTOVER.fullmatch(entry.name))

    def set_aside(self) -> list[Path]:
        """Checkpoints that were found damaged and kept under another name."""
        return sorted(entry for entry in self.path.iterdir() if _ASIDE.fullmatch(entry.name))

    def holder(self) -> str | None:
        """Who writes here, as far as this machine can tell without disturbing it; ``None``: nobody."""
        try:
            stat = os.stat(self.path / ".lock")
            locks = Path("/proc/locks").read_text()
        except FileNotFoundError:
            return None
        place = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}:{stat.st_ino}"
        if not any("FLOCK" in line and place in line.split() for line in locks.splitlines()):
            return None
        return (self.path / ".lock").read_text().strip() or "an unknown process"

    # ---- writing: rank 0 ----

    def lock(self) -> None:
        """Become the only writer, until :meth:`unlock` or the end of the process; clear what dead writers left.

        Raises:
            DirectoryBusyError: another process writes here; names its host and pid.
        """
        if self._lock_fd is not None:
            return
        fd = storage_ops.open_or_create(self.path / ".lock")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 256).decode(errors="replace").strip() or "an unknown process"
            os.close(fd)
            raise DirectoryBusyError(
                f"{self.path} is being written by {holder}; end that job, or give this one another directory"
            ) from None
        except OSError:  # a file system without locks
            os.close(fd)
            raise
        try:
            storage_ops.overwrite(fd, self.path / ".lock", f"{socket.gethostname()} pid {os.getpid()}\n".encode())
            storage_ops.sync_ancestors(self.path)
            self._clear_leftovers()
        except BaseException:
            os.close(fd)
            raise
        self._lock_fd = fd

    def _clear_leftovers(self) -> None:
        leftovers = self.leftovers()
        if leftovers:  # what their writer did last may not be durable yet, and must not be undone after this
            storage_ops.sync_directory(self.path)
        for entry in leftovers:
            storage_ops.remove_tree(entry) if entry.is_dir() else storage_ops.unlink(entry)

    def unlock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def begin(self, step: int) -> Path:
        """A new, empty attempt directory for ``step``."""
        attempt = self.path / f".tmp-{step_name(step)}-{secrets.token_hex(4)}"
        storage_ops.make_directory(attempt)
        return attempt

    def publish(self, attempt: Path, step: int, damaged: Collection[int] = ()) -> Path:
        """Make a complete, synced attempt visible; returns its final path.

        Args:
            attempt: holds every file, the manifest included, each synced.
            step: what it becomes.
            damaged: steps known to be damaged; such a directory makes way and is kept under another name.

        Raises:
            FileExistsError: the step is published already; nothing is ever overwritten.
        """
        final = self.of_step(step)
        storage_ops.sync_directory(attempt)
        if final.exists() and step in damaged:
            storage_ops.rename(final, self.path / f"damaged-{final.name}-{secrets.token_hex(4)}")
        try:
            storage_ops.rename_no_replace(attempt, final)
        except FileExistsError as error:
            raise FileExistsError(
                f"{final} is published already and nothing is ever overwritten; remove it, or use another directory"
            ) from error
        try:
            storage_ops.sync_directory(self.path)
        except OSError:
            # Whole, but a power cut might lose it: nobody shall rely on a step that has failed.
            storage_ops.rename(final, attempt)
            raise
        return final

    def discard(self, attempt: Path) -> None:
        """Remove an attempt that failed; where that cannot be done safely, the next writer's :meth:`lock` will.

        It may have been published for a moment: a power cut must not undo its going back, but not its removal.
        """
        with contextlib.suppress(OSError):
            storage_ops.sync_directory(self.path)
            storage_ops.remove_tree(attempt)

    def put_aside(self, step: int) -> Path:
        """Take a damaged checkpoint out of the published ones, and keep it; returns its new path."""
        aside = self.path / f"damaged-{step_name(step)}-{secrets.token_hex(4)}"
        storage_ops.rename(self.of_step(step), aside)
        storage_ops.sync_directory(self.path)
        return aside

    def remove(self, steps: Sequence[int]) -> None:
        """Remove published steps; a reader sees each of them whole or not at all."""
        leaving = []
        for step in steps:
            old = self.path / f".old-{step_name(step)}-{secrets.token_hex(4)}"
            storage_ops.rename(self.of_step(step), old)
            leaving.append(old)
        storage_ops.sync_directory(self.path)  # else a power cut might undo the renames, but not what follows
        for old in leaving:
            storage_ops.remove_tree(old)


def expired(steps: Sequence[int], keep_last: int | None, keep_every: int | None) -> list[int]:
    """Published steps that retention lets go: not among the last ``keep_last``, no multiple of ``keep_every``."""
    if keep_last is None:
        return []
    return [step for step in sorted(steps)[:-keep_last] if not (keep_every and step % keep_every == 0)]


def read_manifest(checkpoint: Path, *, files: bool = True, on_demand: bool = False) -> manifest.Manifest:
    """The manifest of a published checkpoint, after checking all that can be checked without reading the data.

    Args:
        checkpoint: its directory.
        files: also look at the files: their sizes, and the headers of data files.
        on_demand: check each tensor's entry when it is first asked for.

    Raises:
        DamagedCheckpointError: the manifest, a file's size or a header is not what was written.
    """
    path = checkpoint / manifest.FILE_NAME
    try:
        found = manifest.load(path.read_bytes(), str(path), on_demand=on_demand)
        if (name := _STEP.fullmatch(checkpoint.name)) and int(name[1]) != found.step:
            raise DamagedCheckpointError(f"{path} is of step {found.step}: the directory was renamed")
        if files:
            _check_files(checkpoint, found)
    except OSError as error:
        raise DamagedCheckpointError(f"{checkpoint}: {error.strerror}: {error.filename}") from error
    return found


def _check_files(checkpoint: Path, found: manifest.Manifest) -> None:
    sizes = [(name, file.size_bytes) for file in found.files for name in file.names]
    for name, size_bytes in sizes + [(objects.name, objects.size_bytes) for objects in found.objects]:
        if problem := size_problem(checkpoint / name, size_bytes):
            raise DamagedCheckpointError(problem)
    for file in found.files:
        for name in file.names:
            if problem := header_problem(checkpoint / name, file):
                raise DamagedCheckpointError(problem)


def size_problem(path: Path, size_bytes: int) -> str | None:
    """Why there is no file of that size, if there is none."""
    try:
        actual = path.stat().st_size
    except OSError as error:
        return f"{path.parent}: {error.strerror}: {path}"
    return None if actual == size_bytes else f"{path}: {actual} bytes, expected {size_bytes}: truncated or altered"


def header_problem(path: Path, file: manifest.DataFile) -> str | None:
    """What is wrong with the header of a data file, if anything is."""
    try:
        with open(path, "rb") as stream:
            header = stream.read(file.header_bytes)
    except OSError as error:
        return f"{path.parent}: {error.strerror}: {path}"
    if len(header) != file.header_bytes or _elastates.crc32c(header) != file.header_crc32c:
        return f"{path}: the header's checksum does not match"
    return None


def parse_objects(content: bytes, where: str) -> dict[str, Any]:
    """A rank's Python state: section of the saved state -> its typed JSON.

    Raises:
        DamagedCheckpointError: it is no JSON object.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"{where}: {error!r}") from error
    if not isinstance(found, dict):
        raise DamagedCheckpointError(f"{where}: a {type(found).__name__}, expected a JSON object")
    return found


def read_objects(checkpoint: Path, objects: manifest.ObjectsFile) -> bytes:
    """Content of a rank's Python state, verified.

    Raises:
        DamagedCheckpointError: its checksum does not match.
    """
    path = checkpoint / objects.name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedCheckpointError(f"{path}: {error.strerror}") from error
    if len(content) != objects.size_bytes or _elastates.crc32c(content) != objects.crc32c:
        raise DamagedCheckpointError(f"{path}: the checksum does not match")
    return content
