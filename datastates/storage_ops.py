"""File-system operations of the saving path, all through the native layer.

There they share one seam with the writing of data files: tests inject faults into it, kill the process between any two
operations, and record them all in one order, from which they rebuild what a power cut could have left. Whatever changes
files on behalf of a checkpoint belongs here; plain reads do not.

All of them raise ``OSError`` (or the subclass of its number, ``FileExistsError`` for one) that says what was attempted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _elastates


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    try:
        yield
    except _elastates.StatusError as error:
        _, message, number = error.args
        raise OSError(number, message) from None


def write_synced(path: Path, content: bytes) -> None:
    """A new file with ``content``, durable once this returns; its name, once the directory is synced."""
    with _os_errors():
        _elastates.write_synced(str(path), content)


def open_or_create(path: Path) -> int:
    """A descriptor of ``path``, for reading and writing; the file is made, empty, if there is none."""
    with _os_errors():
        return int(_elastates.open_or_create(str(path)))


def overwrite(fd: int, path: Path, content: bytes) -> None:
    """Put ``content`` in place of what the open file holds; neither atomic nor durable."""
    with _os_errors():
        _elastates.overwrite(fd, str(path), content)


class PieceFile:
    """A file that is made, or gone on with, and written piece by piece; by several threads, if they like.

    Its descriptor lives as long as the object does: a thread that somebody left behind, with Ctrl-C perhaps, writes to
    this file and never to another one that got its number.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        self._fd = open_or_create(path)

    def __fspath__(self) -> str:
        return str(self.path)

    def write(self, content: Any, offset_bytes: int) -> None:
        """Put ``content``, any contiguous buffer, at an offset; durable after :func:`sync_file`."""
        with _os_errors():
            _elastates.write_at(self._fd, str(self.path), content, offset_bytes)

    def set_length(self, size_bytes: int) -> None:
        """Cut the file, or let it end with a hole."""
        with _os_errors():
            _elastates.set_length(self._fd, str(self.path), size_bytes)

    def sync(self) -> None:
        with _os_errors():
            _elastates.sync_file(self._fd, str(self.path))

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def sync_file(file: PieceFile) -> None:
    """Make the bytes and the length of a file durable; its name, once the directory is synced."""
    file.sync()


def sync_directory(path: Path) -> None:
    """Make the names inside ``path`` durable: created, renamed, linked and removed ones."""
    with _os_errors():
        _elastates.sync_directory(str(path))


def rename(source: Path, destination: Path) -> None:
    """As rename(2): replaces a file, or an empty directory."""
    with _os_errors():
        _elastates.rename(str(source), str(destination))


def rename_no_replace(source: Path, destination: Path) -> None:
    """Rename, unless ``destination`` exists: then ``FileExistsError``, and nothing changes."""
    with _os_errors():
        _elastates.rename_no_replace(str(source), str(destination))


def link(source: Path, destination: Path) -> None:
    """Give the file ``source`` a second name; both are equal afterwards."""
    with _os_errors():
        _elastates.link(str(source), str(destination))


def unlink(path: Path) -> None:
    """Remove a name of a file."""
    with _os_errors():
        _elastates.unlink(str(path))


def make_directory(path: Path) -> None:
    """A new directory in one that exists."""
    with _os_errors():
        _elastates.make_directory(str(path))


def make_directories(path: Path) -> None:
    """``path`` and what is missing above it; nothing happens if it exists. See :func:`sync_ancestors`."""
    if path.is_dir():
        return
    make_directories(path.parent)
    with contextlib.suppress(FileExistsError):  # another rank was faster; what is no directory fails at its first use
        make_directory(path)


def sync_ancestors(path: Path) -> None:
    """Make the way to ``path`` durable: its name, and those of the directories above it on its file system.

    Who made them is not asked: a job that was killed may have done it and not come to this. A directory that we may
    not open is not ours, and ends the walk.
    """
    device = path.stat().st_dev
    for ancestor in path.absolute().parents:
        if ancestor.stat().st_dev != device:
            return
        try:
            sync_directory(ancestor)
        except PermissionError:
            return


def remove_directory(path: Path) -> None:
    """Remove an empty directory."""
    with _os_errors():
        _elastates.remove_directory(str(path))


def remove_tree(path: Path) -> None:
    """Remove a directory and all that is in it; symbolic links are removed, not followed."""
    with os.scandir(path) as entries:
        for entry in entries:
            child = Path(entry.path)
            remove_tree(child) if entry.is_dir(follow_symlinks=False) else unlink(child)
    remove_directory(path)
