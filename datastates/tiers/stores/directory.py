"""DirectoryStore: a second directory as a tier: another disk, a network file system. Needs no package.

An upload grows in ``.up-step-*`` and is renamed when it is complete, so the tier is at all times a directory of
checkpoints as ``docs/format.md`` describes it: a :class:`datastates.Checkpointer` can open it.
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
from collections.abc import Collection
from pathlib import Path
from urllib.parse import unquote, urlsplit

from datastates import storage_ops
from datastates.manifest import FILE_NAME
from datastates.tiers.pace import Pace
from datastates.tiers.plan import FilePlan, Piece, damaged
from datastates.tiers.stores.base import Listing, Source, Store, read_runs, write_runs
from datastates.tiers.workers import Workers

logger = logging.getLogger("datastates")

STAGING = ".up-"
LEAVING = ".old-"
_FOLDER = re.compile(r"(\.up-)?step-\d{8,}")


def local_path(url: str) -> Path | None:
    """The directory that a URL means; ``None`` if it is not on this machine's file systems."""
    if url.startswith("file:"):
        return Path(unquote(urlsplit(url).path))
    return None if "://" in url else Path(url)


class DirectoryStore(Store):
    """See :class:`Store`."""

    has_links = True

    def __init__(self, path: Path) -> None:
        self.url = str(path)
        self.path = path

    def listing(self, folder: str | None = None) -> Listing:
        if not self.path.is_dir():
            return {}
        folders = self.path.iterdir() if folder is None else iter([self.path / folder])
        return {
            found.name: {file.name: file.stat().st_size for file in found.iterdir()}
            for found in folders
            if _FOLDER.fullmatch(found.name) and found.is_dir()
        }

    def get(self, name: str, begin: int = 0, end: int | None = None) -> bytes:
        with open(self.path / name, "rb") as stream:
            stream.seek(begin)
            return stream.read() if end is None else stream.read(end - begin)

    def put(self, name: str, content: bytes) -> None:
        path = self.path / name
        storage_ops.make_directories(path.parent)
        new = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        try:
            storage_ops.write_synced(new, content)
            storage_ops.rename(new, path)
        except OSError:
            with contextlib.suppress(OSError):  # the first failure is the one to tell
                storage_ops.unlink(new)
            raise
        storage_ops.sync_directory(path.parent)

    def read(self, name: str, piece: Piece) -> bytes:
        return read_runs(self.path / name, piece)

    def size_bytes(self, file: FilePlan) -> int:
        return file.size_bytes

    def send(self, name: str, source: Source, pace: Pace, parts: Workers) -> int:
        path = self.path / name
        storage_ops.make_directories(path.parent)
        file = storage_ops.PieceFile(path)

        def send_piece(piece: Piece) -> int:
            if not damaged(piece, read_runs(path, piece)):
                return 0
            content = source.read(piece)
            pace.take(piece.size_bytes)
            pace.retried(lambda: write_runs(file, piece, content), f"writing {path}")
            return piece.size_bytes

        sent = sum(parts.map(send_piece, source.plan.pieces))
        file.set_length(source.plan.size_bytes)
        storage_ops.sync_file(file)
        return sent

    def adopt(self, name: str, file: FilePlan, candidate: str) -> bool:
        path, other = self.path / name, self.path / candidate
        try:
            if other.stat().st_size != file.size_bytes:  # its bytes were verified when they were sent
                return False
            storage_ops.make_directories(path.parent)
            with contextlib.suppress(FileNotFoundError):  # what an interrupted upload left
                storage_ops.unlink(path)
            storage_ops.link(other, path)
        except OSError as error:
            logger.info("%s is not shared: %s", candidate, error)
            return False
        return True

    def drop(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            storage_ops.unlink(self.path / name)

    def staging(self, step: str) -> str:
        return STAGING + step

    def commit(self, step: str, manifest: bytes) -> None:
        staged, final = self.path / self.staging(step), self.path / step
        if staged.exists() or not final.exists():  # else the attempt before this one got as far as the rename
            self.put(f"{self.staging(step)}/{FILE_NAME}", manifest)
            storage_ops.rename_no_replace(staged, final)
        storage_ops.sync_directory(self.path)
        storage_ops.sync_ancestors(self.path)

    def remove(self, folder: str, keep: Collection[str] = ()) -> None:
        leaving = self.path / f"{LEAVING}{folder}-{secrets.token_hex(4)}"
        try:
            storage_ops.rename(self.path / folder, leaving)
        except FileNotFoundError:
            return
        storage_ops.sync_directory(self.path)  # else a power cut might undo the rename, but not what follows
        storage_ops.remove_tree(leaving)

    def sweep(self) -> None:
        left = list(self.path.glob(f"{LEAVING}*"))
        if left:  # whoever renamed them may not have come to this
            storage_ops.sync_directory(self.path)
        for leaving in left:
            storage_ops.remove_tree(leaving)
