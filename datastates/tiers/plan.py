"""What travels together: a checkpoint's files cut into pieces that carry their own checksums. Pure.

A piece is a run of whole extents, so that whoever reads its bytes, from the local disk before sending or from a store
while fetching, can verify them before anybody relies on them. The cut depends on the manifest alone: an upload that
goes on after an interruption cuts as the one before did.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from datastates.manifest import DataFile, Manifest, ObjectsFile

import _elastates

MAX_PIECES = 9_000
"""S3 takes 10,000 parts of one object."""


class Check(NamedTuple):
    """Bytes ``[begin, end)`` of a file have this CRC32C."""

    begin: int
    end: int
    crc32c: int


class Piece(NamedTuple):
    """Checked ranges of a file, ascending, sent and fetched as one; there may be holes between them."""

    checks: tuple[Check, ...]
    offset_bytes: int
    """Where it begins among the file's stored bytes, which are those of all pieces, one after the other."""

    @property
    def size_bytes(self) -> int:
        return sum(check.end - check.begin for check in self.checks)

    def runs(self) -> list[tuple[int, int]]:
        """The ranges of the file, neighbours in one."""
        runs: list[tuple[int, int]] = []
        for check in self.checks:
            begin = runs.pop()[0] if runs and runs[-1][1] == check.begin else check.begin
            runs.append((begin, check.end))
        return runs


@dataclass(frozen=True)
class FilePlan:
    """One file of a checkpoint, cut into pieces; without holes in it they tile it."""

    name: str
    size_bytes: int
    """Of the file, holes included."""
    pieces: tuple[Piece, ...]
    is_source: bool = False
    """Written by an earlier checkpoint, of which this delta needs what the pieces hold."""

    @property
    def stored_bytes(self) -> int:
        """Without holes."""
        return sum(piece.size_bytes for piece in self.pieces)


def plan_files(manifest: Manifest, part_bytes: int) -> tuple[FilePlan, ...]:
    """Every file of the checkpoint but the manifest itself; data files first.

    Args:
        manifest: of the checkpoint.
        part_bytes: a piece has at least this many bytes, unless it is its file's last, and at most one extent more.
    """
    data = [plan for file in manifest.files for plan in _data_plans(file, part_bytes)]
    objects = [_plan(file.name, file.size_bytes, _objects_checks(file), part_bytes) for file in manifest.objects]
    return tuple(data + objects)


def damaged(piece: Piece, content: bytes) -> list[Check]:
    """The ranges whose bytes in ``content``, which is all of the piece, are not what was written."""
    if len(content) != piece.size_bytes:
        return list(piece.checks)
    view, at, found = memoryview(content), 0, []
    for check in piece.checks:
        size_bytes = check.end - check.begin
        if _elastates.crc32c(view[at : at + size_bytes]) != check.crc32c:
            found.append(check)
        at += size_bytes
    return found


def _data_plans(file: DataFile, part_bytes: int) -> Iterator[FilePlan]:
    """A data file and its sources: all have its header, each extent is in one of them."""
    header = Check(0, file.header_bytes, file.header_crc32c)
    held: list[list[Check]] = [[header] for _ in file.names]
    holders = [0] * len(file.extent_ends) if file.extent_sources is None else file.extent_sources.tolist()
    for check, holder in zip(_extent_checks(file), holders, strict=True):
        held[holder].append(check)
    for number, (name, checks) in enumerate(zip(file.names, held, strict=True)):
        yield replace(_plan(name, file.size_bytes, checks, part_bytes), is_source=number > 0)


def _extent_checks(file: DataFile) -> Iterator[Check]:
    begin = file.header_bytes
    for end, crc in zip(file.extent_ends.tolist(), file.extent_crc32c.tolist(), strict=True):
        yield Check(begin, end, crc)
        begin = end


def _objects_checks(file: ObjectsFile) -> list[Check]:
    return [Check(0, file.size_bytes, file.crc32c)]


def _plan(name: str, size_bytes: int, checks: Sequence[Check], part_bytes: int) -> FilePlan:
    part_bytes = max(part_bytes, -(-size_bytes // MAX_PIECES))
    pieces: list[Piece] = []
    gathered: list[Check] = []
    begin = stored = 0
    for check in checks:
        gathered.append(check)
        stored += check.end - check.begin
        if stored - begin >= part_bytes:
            pieces.append(Piece(tuple(gathered), begin))
            gathered, begin = [], stored
    if gathered:
        pieces.append(Piece(tuple(gathered), begin))
    return FilePlan(name, size_bytes, tuple(pieces))
