"""Every state that a power cut could leave: what is open on a :class:`~benchmarks.crash.disk.Disk`, decided.

The states that have broken file formats before come first and are the same in every run: everything lost, everything
kept, names without bytes, bytes without names, each open change alone lost or alone kept, every file empty, full of
zeros or torn. Random mixtures, from a seed, follow without end.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.crash.disk import ROOT, Disk, FileNode

SECTORS = (512, 4096)
"""Bytes that reach the disk together: of the drives in use, the smaller and the larger unit."""
NAMES_KEPT = (0.5, 0.1, 0.9)
BYTES = ("kept", "lost", "zeros", "torn", "part")


@dataclass(frozen=True)
class Decision:
    """What of the open changes reached the disk."""

    names: frozenset[int]
    """Numbers of the open changes of names that did."""
    bytes_of: Mapping[int, str] = field(default_factory=dict)
    """File -> one of ``BYTES``; of files not listed, ``default``."""
    default: str = "kept"
    seed: int = 0


@dataclass(frozen=True)
class State:
    """What is there after the restart: path below the root -> content, ``None`` for a directory."""

    tree: Mapping[str, bytes | None]

    def digest(self) -> bytes:
        """The same for the same state."""
        hashed = hashlib.blake2b(digest_size=16)
        for path, content in sorted(self.tree.items()):
            hashed.update(f"{path}\0{-1 if content is None else len(content)}\0".encode())
            hashed.update(content or b"")
        return hashed.digest()

    def write_to(self, root: Path) -> None:
        """Make it so below ``root``."""
        for path, content in self.tree.items():  # parents come first
            if content is None:
                (root / path).mkdir()
            else:
                (root / path).write_bytes(content)


def decisions(disk: Disk, seed: int) -> Iterator[Decision]:
    """The telling decisions, then random ones without end; if nothing is open, one."""
    open_names = [number for number, edit in enumerate(disk.names) if edit.unsynced]
    open_files = [node for node, file in disk.files.items() if file.pending]
    everything, nothing = frozenset(open_names), frozenset[int]()
    yield Decision(everything)
    if not open_names and not open_files:
        return
    for names in (everything, nothing):
        for how in BYTES:
            yield Decision(names, default=how, seed=seed)
    for number in open_names:
        yield Decision(everything - {number})
        yield Decision(frozenset({number}), default="lost")
        yield Decision(frozenset(n for n in open_names if n <= number))
    for node in open_files:
        for how in BYTES[1:]:
            yield Decision(everything, {node: how}, seed=seed)
    randomly = random.Random(seed)
    while True:
        kept = randomly.choice(NAMES_KEPT)
        names = frozenset(number for number in open_names if randomly.random() < kept)
        yield Decision(names, {node: randomly.choice(BYTES) for node in open_files}, seed=randomly.getrandbits(32))


def state(disk: Disk, decision: Decision) -> State:
    """What a restart finds."""
    directories: dict[int, dict[str, int]] = {}
    for number, edit in enumerate(disk.names):
        if edit.unsynced and number not in decision.names:
            continue
        moved = edit.changes[-1][2]
        for parent, name, node in edit.changes:
            entries = directories.setdefault(parent, {})
            if node is not None:
                entries[name] = node
            elif len(edit.changes) == 1 or entries.get(name) == moved:
                entries.pop(name, None)
    tree: dict[str, bytes | None] = {}
    _walk(disk, decision, directories, ROOT, "", tree)
    return State(tree)


def _walk(
    disk: Disk,
    decision: Decision,
    directories: Mapping[int, Mapping[str, int]],
    node: int,
    path: str,
    tree: dict[str, bytes | None],
) -> None:
    for name, child in sorted(directories.get(node, {}).items()):
        where = f"{path}{name}"
        if (file := disk.files.get(child)) is not None:
            how = decision.bytes_of.get(child, decision.default)
            tree[where] = content(file, how, random.Random(decision.seed * 1_000_003 + child))
        else:
            tree[where] = None
            _walk(disk, decision, directories, child, f"{where}/", tree)


def content(file: FileNode, how: str, randomly: random.Random) -> bytes:
    """A file's bytes after the restart.

    Args:
        file: what is durable of it, and what is open.
        how: ``kept``: all that was written; ``lost``: none of what is open; ``zeros``: the length, but not the bytes;
            ``torn``: any sectors; ``part``: some of the changes, the last one of them cut.
        randomly: decides the rest.
    """
    if how == "lost" or not file.pending:
        return file.durable
    lengths = _lengths(file)
    if how == "zeros":
        return _cut(bytearray(file.durable), lengths[-1])
    kept = bytearray(file.durable)
    if how == "part":
        return _part(file, kept, lengths, randomly)
    for edit in file.pending:
        edit.apply(kept)
    if how == "torn":
        return _torn(file, kept, lengths, randomly)
    return bytes(kept)


def _lengths(file: FileNode) -> list[int]:
    """Every length the file has had since it was synced last."""
    now = bytearray(file.durable)
    lengths = [len(now)]
    for edit in file.pending:
        edit.apply(now)
        lengths.append(len(now))
    return lengths


def _cut(content: bytearray, length: int) -> bytes:
    return bytes(content[:length]) + bytes(max(0, length - len(content)))


def _torn(file: FileNode, kept: bytearray, lengths: list[int], randomly: random.Random) -> bytes:
    """Of every sector, either what was durable (zeros beyond it) or what was written last."""
    sector = randomly.choice(SECTORS)
    share = randomly.random()
    for begin in range(0, len(kept), sector):
        if randomly.random() < share:
            end = min(begin + sector, len(kept))
            kept[begin:end] = _cut(bytearray(file.durable[begin:end]), end - begin)
    if randomly.random() < 0.3:
        shorter = range(min(lengths), len(kept), sector)
        return _cut(kept, randomly.choice([*lengths[1:], *shorter]))
    return bytes(kept)


def _part(file: FileNode, kept: bytearray, lengths: list[int], randomly: random.Random) -> bytes:
    """Some of the changes; the last of them up to a sector; any length that the file has had."""
    chosen = [edit for edit in file.pending if randomly.random() < 0.6]
    for edit in chosen[:-1]:
        edit.apply(kept)
    if chosen:
        last, before = chosen[-1], bytes(kept)
        last.apply(kept)
        if last.data is not None:
            end = last.offset + len(last.data)
            cut = last.offset + len(last.data) * randomly.randrange(8) // 8 // SECTORS[0] * SECTORS[0]
            kept[cut:end] = _cut(bytearray(before[cut:end]), end - cut)
    return _cut(kept, randomly.choice(lengths))
