"""What every contender's files go through: made durable, counted, evicted, deleted."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any


def fsync_path(path: Path) -> None:
    """Make one file or directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(root: Path) -> None:
    """Make a checkpoint durable: its files, then its directories, then the parent that names it."""
    for directory, _, names in os.walk(root, topdown=False):
        for name in names:
            fsync_path(Path(directory, name))
        fsync_path(Path(directory))
    fsync_path(root.parent)


def evict_tree(root: Path) -> None:
    """Drop every file below ``root`` from the page cache. Dirty pages stay, so sync before."""
    for directory, _, names in os.walk(root):
        for name in names:
            evict_file(Path(directory, name))


def evict_file(path: Path) -> None:
    """Drop one synced file from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def tree_size_bytes(root: Path) -> int:
    """Bytes in all files below ``root``."""
    return sum(Path(directory, name).stat().st_size for directory, _, names in os.walk(root) for name in names)


def remove_tree(root: Path) -> None:
    """Delete a checkpoint and let the file system finish with it, so that the next clock starts on a quiet disk."""
    shutil.rmtree(root, ignore_errors=True)
    os.sync()


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Write a report where a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(report, indent=1, sort_keys=False) + "\n")
    partial.replace(path)
