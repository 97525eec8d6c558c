"""A file system that forgets: what of a recorded run was durable at a moment, and what was not yet.

The model is the weakest that POSIX and the journalling file systems in use leave room for:

* An fsync of a file makes durable what had been done to its bytes and length before, and nothing else: not its name.
* An fsync of a directory makes durable the changes of names in it that the same machine made before. A change of two
  directories is durable when both are.
* Everything else that was begun is open: each change of a name may have reached the disk or not, whatever came before
  or after it; of a file's bytes any sectors may have, in any order; its length may be any that it had since, or
  passed on its way.
* An operation that had begun and not ended is open, a sync that had not ended promises nothing.
* One change of a name is atomic, and so is one sector.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from benchmarks.crash.log import Operation

ROOT = 0
SYNCS = ("fsync", "fsync_directory")


@dataclass(frozen=True)
class NameEdit:
    """A change of names: in each (directory, name), the node it stands for afterwards; ``None``: none."""

    changes: tuple[tuple[int, str, int | None], ...]
    done: Operation
    unsynced: frozenset[int]
    """Directories that must still be synced; the change may have reached the disk all the same."""


@dataclass(frozen=True)
class ByteEdit:
    """A change of a file: bytes at an offset, or (``data is None``) a new length; ``shrinks``: cuts at it."""

    offset: int
    data: bytes | None
    done: Operation
    shrinks: bool = False

    def apply(self, content: bytearray) -> None:
        """Do it to the file's content."""
        end = self.offset + len(self.data or b"")
        if self.shrinks:
            del content[end:]
        content.extend(bytes(max(0, end - len(content))))
        if self.data is not None:
            content[self.offset : end] = self.data


@dataclass
class FileNode:
    """A file: what is on disk for certain, and what may be."""

    durable: bytes = b""
    pending: list[ByteEdit] = field(default_factory=list)

    def sync(self, began_ns: int) -> None:
        content = bytearray(self.durable)
        for edit in self.pending:
            if _ended_before(edit.done, began_ns):
                edit.apply(content)
        self.durable = bytes(content)
        self.pending = [edit for edit in self.pending if not _ended_before(edit.done, began_ns)]


class Disk:
    """The file system below ``root`` just before ``moment_ns``.

    Args:
        root: existed, durably, before the log begins; operations outside are not looked at.
        initial: files that were there, durably: path below ``root`` -> content.
        log: what was done, in order of beginning.
        moment_ns: when the power goes; ``None``: after everything.
        without: call sites of fsyncs that are taken for not made.
    """

    def __init__(
        self,
        root: Path,
        initial: dict[str, bytes],
        log: Iterable[Operation],
        moment_ns: int | None = None,
        without: Collection[str] = (),
    ) -> None:
        self._root = str(root)
        self.files: dict[int, FileNode] = {}
        self.names: list[NameEdit] = []
        self._live: dict[int, dict[str, int]] = {ROOT: {}}  # directories: name -> node
        self._num_nodes = 1
        for path, content in initial.items():
            self._put(path, content)
        for done in log:
            if moment_ns is not None and done.began_ns >= moment_ns:
                break
            if done.failed or done.op == "mark":
                continue
            if done.op in SYNCS:
                if _ended_before(done, moment_ns) and done.site not in without:
                    self._sync(done)
            elif (where := self._find(done.path)) is not None:
                self._apply(done, *where)

    # ---- operations

    def _apply(self, done: Operation, parent: int, name: str) -> None:
        node = self._live[parent].get(name)
        if done.op in ("create", "mkdir"):
            if node is None:
                self._edit(done, (parent, name, self._new(is_directory=done.op == "mkdir")))
        elif done.op in ("unlink", "rmdir"):
            self._edit(done, (parent, name, None))
        elif done.op in ("rename", "link"):
            goal = self._find(done.destination)
            assert goal is not None and node is not None, f"{done.op} of what is not there: {done.path}"
            gone = [(parent, name, None)] if done.op == "rename" else []
            self._edit(done, *gone, (*goal, node))
        elif node is not None and node in self.files:
            self.files[node].pending.append(self._byte_edit(done))

    @staticmethod
    def _byte_edit(done: Operation) -> ByteEdit:
        if done.op == "write":
            return ByteEdit(done.offset, done.data[: done.result] if done.ended_ns else done.data, done)
        return ByteEdit(done.size_bytes, None, done, shrinks=done.op == "ftruncate")

    def _edit(self, done: Operation, *changes: tuple[int, str, int | None]) -> None:
        for parent, name, node in changes:
            if node is None:
                del self._live[parent][name]
            else:
                self._live[parent][name] = node
        self.names.append(NameEdit(changes, done, frozenset(parent for parent, _, _ in changes)))

    def _sync(self, done: Operation) -> None:
        if done.op == "fsync":
            parent, name = self._find(done.path) or (ROOT, "")
            if (node := self._live[parent].get(name)) is not None:
                self.files[node].sync(done.began_ns)
        elif (directory := self._directory(done.path)) is not None:
            self.names = [
                replace(edit, unsynced=edit.unsynced - {directory})
                if edit.done.client == done.client and _ended_before(edit.done, done.began_ns)
                else edit
                for edit in self.names
            ]

    # ---- the tree as running programs see it

    def _new(self, *, is_directory: bool) -> int:
        node = self._num_nodes
        self._num_nodes += 1
        if is_directory:
            self._live[node] = {}
        else:
            self.files[node] = FileNode()
        return node

    def _find(self, path: str) -> tuple[int, str] | None:
        """(directory, name) of a path; ``None`` outside the root."""
        above, _, name = path.rpartition("/")
        directory = self._directory(above)
        return None if directory is None or path == self._root else (directory, name)

    def _directory(self, path: str) -> int | None:
        if path == self._root:
            return ROOT
        if not path.startswith(f"{self._root}/"):
            return None
        node: int | None = ROOT
        for name in path.removeprefix(f"{self._root}/").split("/"):
            node = self._live[node].get(name) if node is not None and node in self._live else None
        return node

    def _put(self, path: str, content: bytes) -> None:
        """A file that was there, durably, before the log begins."""
        parent = ROOT
        *above, name = PurePosixPath(path).parts
        for directory in above:
            if directory not in self._live[parent]:
                self._put_name(parent, directory, self._new(is_directory=True))
            parent = self._live[parent][directory]
        node = self._new(is_directory=False)
        self.files[node].durable = content
        self._put_name(parent, name, node)

    def _put_name(self, parent: int, name: str, node: int) -> None:
        self._live[parent][name] = node
        self.names.append(NameEdit(((parent, name, node),), BEFORE, frozenset()))


BEFORE = Operation(op="mark", path="before the log", began_ns=0, ended_ns=0)


def _ended_before(done: Operation, moment_ns: int | None) -> bool:
    return done.ended_ns != 0 and (moment_ns is None or done.ended_ns < moment_ns)
