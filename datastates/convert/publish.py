"""New files and directories that appear whole or not at all, and never take another's place."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from datastates import storage_ops


def refuse_existing(path: Path) -> None:
    """Raise FileExistsError if there is something at ``path``; before work is spent on it."""
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists already and nothing is ever overwritten; name another, or remove it")


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write; once the block ends it is synced and at ``path``. After an error nothing is left."""
    refuse_existing(path)
    partial = _partial(path)
    try:
        with open(partial, "xb", buffering=0) as stream:
            yield _Whole(stream)  # type: ignore[misc]
            os.fsync(stream.fileno())
        _publish(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill; once the block ends all of it is synced and at ``path``. After an error nothing is left."""
    refuse_existing(path)
    partial = _partial(path)
    partial.mkdir()
    try:
        yield partial
        for entry in partial.rglob("*"):
            _sync(entry)
        _sync(partial)
        _publish(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


class _Whole:
    """A raw file whose ``write`` takes all it is given: the operating system may take less (2 GiB at most on Linux)."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, data: memoryview | bytes) -> int:
        view = memoryview(data)
        done = 0
        while done < len(view):
            done += self._stream.write(view[done:])
        return done

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _publish(partial: Path, path: Path) -> None:
    refuse_existing(path)
    storage_ops.rename_no_replace(partial, path)
    storage_ops.sync_directory(path.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
