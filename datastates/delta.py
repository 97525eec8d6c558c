"""Deltas: what this process remembers of published checkpoints, so that later ones refer to what did not change.

A delta's data file has the layout of a full one, with holes where an extent is unchanged; the earlier files that hold
those extents are hard-linked into its directory. So every directory is whole by itself, and removing one never harms
another: a file lives until its last name goes. ``docs/deltas.md`` tells the rest.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datastates import storage_ops
from datastates.directory import size_problem, source_file_name
from datastates.manifest import DataFile

import _elastates

logger = logging.getLogger("datastates")
KEPT_BASES = 2
"""A rank learns of a publication at most one checkpoint later than another: two bases have one in common."""
MAX_CHAIN_SIZES = 2
"""The next checkpoint is full when the chain's files hold this many times the bytes of one checkpoint."""
NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV})
"""How file systems say that they have no hard links."""


@dataclass(frozen=True)
class Base:
    """A published checkpoint, as one rank remembers it."""

    step: int
    rank: int
    path: Path
    layout: str
    """:attr:`datastates.agreement.SavePlan.layout`: only the same extents can be compared."""
    file: DataFile
    """What this rank stored there."""
    digests: Any
    """``_elastates.ExtentDigests`` of it."""
    full_ordinal: int
    """When the chain began: ordinal of its full checkpoint."""
    chain_bytes: int
    """What the chain's files hold, all ranks."""
    size_bytes: int
    """Size of one checkpoint, all ranks."""


@dataclass(frozen=True)
class Referral:
    """Where the extents of a delta's data file lie."""

    links: dict[str, Path]
    """Name in the new directory -> the file it is another name of."""
    sources: tuple[str, ...]
    extent_sources: np.ndarray
    """[extents] uint32, as :attr:`datastates.manifest.DataFile.extent_sources`."""


def refer(base: Base, changed: np.ndarray) -> Referral:
    """Find the holder of every extent: unchanged ones stay where the base has them. Pure.

    Args:
        base: what the data file was compared with.
        changed: [extents] uint8, 0 where the base's bytes stand for the extent.
    """
    held_by = base.file.extent_sources
    held_by = np.zeros(len(changed), dtype=np.int64) if held_by is None else held_by.astype(np.int64)
    used = np.unique(held_by[changed == 0])
    names = (source_file_name(base.rank, base.step), *base.file.sources)
    number = np.zeros(len(base.file.names), dtype=np.uint32)
    number[used] = np.arange(1, len(used) + 1)
    return Referral(
        links={names[old]: base.path / base.file.names[old] for old in used},
        sources=tuple(names[old] for old in used),
        extent_sources=np.where(changed == 0, number[held_by], 0).astype(np.uint32),
    )


def written_bytes(header_bytes: int, extent_ends: np.ndarray, changed: np.ndarray) -> int:
    """Bytes of a data file that are no holes."""
    sizes = np.diff(extent_ends.astype(np.int64), prepend=header_bytes)
    return header_bytes + int(sizes[changed != 0].sum())


def common_base(offers: Sequence[Sequence[int]]) -> int | None:
    """The newest step that every rank can build on; the same answer on all ranks."""
    common = set(offers[0]).intersection(*offers[1:])
    return max(common, default=None)


class DeltaBases:
    """The newest published checkpoints of this process. Used by the plan lane and the commit lane.

    A base that a checkpoint in flight may refer to is *pinned*: retention leaves it until that checkpoint has its own
    links. Retention and pins exclude each other through one lock.
    """

    def __init__(self, full_every: int | None) -> None:
        self._full_every = full_every
        self._lock = threading.Lock()
        self._bases: dict[int, Base] = {}  # guarded by _lock, as all below
        self._pins: dict[int, int] = {}
        self._has_links: bool | None = None  # not known yet

    def offer(self, ordinal: int, attempt: Path | None) -> list[Base]:
        """What the checkpoint ``ordinal`` could build on, pinned until :meth:`settle`.

        Args:
            ordinal: counts the checkpoints of this process.
            attempt: rank 0: a directory in which links can be tried.
        """
        with self._lock:
            found = [base for base in self._bases.values() if self._may_grow(base, ordinal) and is_there(base)]
            if found and attempt is not None and not self._try_link(found[-1], attempt):
                return []
            for base in found:
                self._pins[base.step] = self._pins.get(base.step, 0) + 1
            return found

    def settle(self, offered: Sequence[Base], chosen: int | None) -> Base | None:
        """Unpin what was offered, but for the chosen step: :meth:`release` unpins that."""
        with self._lock:
            for base in offered:
                if base.step != chosen:
                    self._unpin(base.step)
        return next((base for base in offered if base.step == chosen), None)

    def release(self, base: Base) -> None:
        """The checkpoint that was built on ``base`` is published, or will never be."""
        with self._lock:
            self._unpin(base.step)

    def add(self, base: Base) -> None:
        """A checkpoint was published."""
        with self._lock:
            if source_file_name(base.rank, base.step) in base.file.sources:
                self._bases.clear()  # its step was taken, removed and taken again: the name is another file's
                return
            self._bases[base.step] = base
            while len(self._bases) > KEPT_BASES:
                del self._bases[next(iter(self._bases))]

    def let_go(self, steps: Sequence[int]) -> list[int]:
        """Which of ``steps`` retention may remove now; they are no bases any more."""
        with self._lock:
            free = [step for step in steps if step not in self._pins]
            for step in free:
                self._bases.pop(step, None)
            return free

    def clear(self) -> None:
        """Forget all: the next checkpoint is full, on all ranks."""
        with self._lock:
            self._bases.clear()

    def _may_grow(self, base: Base, ordinal: int) -> bool:
        is_young = self._full_every is not None and ordinal - base.full_ordinal < self._full_every
        return is_young and self._has_links is not False and base.chain_bytes < MAX_CHAIN_SIZES * base.size_bytes

    def _try_link(self, base: Base, attempt: Path) -> bool:
        """Once: whether the file system has links at all."""
        if self._has_links is None:
            try:
                storage_ops.link(base.path / base.file.name, attempt / ".link")
            except OSError as error:
                if error.errno not in NO_LINKS:
                    return False
                logger.warning("%s has no hard links (%s): all checkpoints are full", attempt.parent, error.strerror)
                self._has_links = False
            else:
                storage_ops.unlink(attempt / ".link")
                self._has_links = True
        return self._has_links

    def _unpin(self, step: int) -> None:
        self._pins[step] -= 1
        if not self._pins[step]:
            del self._pins[step]


def is_there(base: Base) -> bool:
    """Whether the base's files still exist and have their size."""
    return all(size_problem(base.path / name, base.file.size_bytes) is None for name in base.file.names)


def new_content_key() -> Any:
    """The secret of a new chain (``csrc/base/content_hash.h`` says what for)."""
    return _elastates.ContentKey(os.urandom(_elastates.ContentKey.SIZE_BYTES))
