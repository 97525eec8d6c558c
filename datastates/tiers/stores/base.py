"""Store: what a tier must be able to do. All names are ``folder/file``; a step's folder is ``step-00000012``."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path

from datastates.errors import DamagedCheckpointError
from datastates.manifest import FILE_NAME
from datastates.storage_ops import PieceFile
from datastates.tiers.pace import Pace
from datastates.tiers.plan import FilePlan, Piece, damaged
from datastates.tiers.workers import Workers

Listing = dict[str, dict[str, int]]
"""Folder -> file -> size, bytes."""
_STEP = re.compile(r"step-(\d{8,})")


def complete_steps(listing: Listing) -> list[int]:
    """Steps that have a manifest, ascending; says nothing about damage."""
    found = (_STEP.fullmatch(folder) for folder, files in listing.items() if FILE_NAME in files)
    return sorted(int(match[1]) for match in found if match)


def read_runs(path: Path, piece: Piece) -> bytes:
    """The bytes of a piece of a local file; fewer, if the file has not that many."""
    with open(path, "rb") as stream:
        return b"".join(os.pread(stream.fileno(), end - begin, begin) for begin, end in piece.runs())


def write_runs(file: PieceFile, piece: Piece, content: bytes) -> None:
    """Put the bytes of a piece where they belong in a local file."""
    view = memoryview(content)
    for begin, end in piece.runs():
        file.write(view[: end - begin], begin)
        view = view[end - begin :]


class Source:
    """A file of a published checkpoint, read piece by piece, every byte verified before anybody sends it."""

    def __init__(self, path: Path, plan: FilePlan) -> None:
        self.path = path
        self.plan = plan

    def read(self, piece: Piece) -> bytes:
        """The bytes of ``piece``.

        Raises:
            DamagedCheckpointError: the local file has changed since it was written.
        """
        content = read_runs(self.path, piece)
        if bad := damaged(piece, content):
            ranges = ", ".join(f"[{check.begin}, {check.end})" for check in bad[:8])
            raise DamagedCheckpointError(f"{self.path}: checksum mismatch in bytes {ranges}; it is not copied")
        return content


class Store(ABC):
    """One tier's storage. Methods may be called from several threads; each is one attempt, retries are the caller's.

    Whoever reads goes by the manifest alone: a step's folder without one is an upload that has not ended.
    """

    url: str
    has_links = False
    """Whether files that checkpoints share get a name in each (:meth:`adopt`); else others refer to where they are."""

    @abstractmethod
    def listing(self, folder: str | None = None) -> Listing:
        """Every folder, or this one, and its files with their sizes."""

    @abstractmethod
    def get(self, name: str, begin: int = 0, end: int | None = None) -> bytes:
        """Bytes ``[begin, end)`` of a file.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def read(self, name: str, piece: Piece) -> bytes:
        """A piece of a file that was sent."""
        return self.get(name, piece.offset_bytes, piece.offset_bytes + piece.size_bytes)

    def size_bytes(self, file: FilePlan) -> int:
        """What :meth:`listing` says of a file that was sent."""
        return file.stored_bytes

    @abstractmethod
    def put(self, name: str, content: bytes) -> None:
        """A small file, seen whole or not at all; replaces one of that name."""

    @abstractmethod
    def send(self, name: str, source: Source, pace: Pace, parts: Workers) -> int:
        """Copy a file; what an interrupted call already brought here is not sent again.

        Args:
            name: where to; the folder is one that :meth:`staging` said.
            source: the file.
            pace: asked before every piece, and what retries.
            parts: for pieces that can travel side by side.

        Returns:
            Bytes sent.
        """

    @abstractmethod
    def remove(self, folder: str, keep: Collection[str] = ()) -> None:
        """Remove a folder, its manifest first: a reader sees the checkpoint whole or not at all.

        Args:
            folder: which.
            keep: files that stay, ``folder/file``.
        """

    @abstractmethod
    def drop(self, name: str) -> None:
        """Remove one file."""

    def adopt(self, name: str, file: FilePlan, candidate: str) -> bool:
        """Where there are links: make ``name`` another name of ``candidate``, which holds all pieces of ``file``.

        Returns whether it could be done.
        """
        raise NotImplementedError

    def staging(self, step: str) -> str:
        """The folder that the files of ``step`` are sent to."""
        return step

    def commit(self, step: str, manifest: bytes) -> None:
        """Make the complete upload of ``step`` a checkpoint."""
        self.put(f"{step}/{FILE_NAME}", manifest)

    def sweep(self) -> None:  # noqa: B027  (most have nothing)
        """Remove what :meth:`listing` does not show of uploads that were given up; none is under way now."""

    def step_url(self, step: str) -> str:
        return f"{self.url.rstrip('/')}/{step}"
