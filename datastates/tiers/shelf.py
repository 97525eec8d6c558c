"""Where the bytes of a delta's files are in a store: files that several checkpoints share are sent once.

A delta names the earlier files that hold what did not change (``DataFile.sources``). In a directory they are hard
links, as in the local one. Other stores have no links: there ``where.json``, beside the manifest, says for every source
in which object its bytes are, and which ranges of the file that object holds, one after the other.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from datastates import manifest
from datastates.directory import step_name
from datastates.errors import DamagedCheckpointError
from datastates.tiers.plan import Check, FilePlan, Piece, plan_files
from datastates.tiers.stores import Store
from datastates.tiers.stores.base import Listing

WHERE = "where.json"
SHARED = "shared"
"""Folder of the objects that hold bytes of checkpoints which the store never had."""
MAX_SPREAD = 4
"""Ranges are fetched in one request unless they are spread over more than so many times their bytes."""
DELTA = "safetensors.delta"
_SOURCE = re.compile(r"(rank-\d+)\.from-step-(\d{8,})\.base")


@dataclass(frozen=True)
class Stored:
    """Where bytes of a file are."""

    object: str
    runs: tuple[tuple[int, int], ...]
    """Ranges of the file, ascending, that the object holds one after the other."""

    def offset_of(self, begin: int, end: int) -> int:
        """Where in the object the bytes ``[begin, end)`` of the file begin.

        Raises:
            ValueError: the object does not hold them.
        """
        at = bisect.bisect_right(self.runs, begin, key=lambda run: run[0]) - 1
        if at < 0 or self.runs[at][1] < end:
            raise ValueError(f"{self.object} does not hold bytes [{begin}, {end})")
        return sum(end - begin for begin, end in self.runs[:at]) + begin - self.runs[at][0]

    def ranges_of(self, piece: Piece) -> list[tuple[int, int]]:
        """The ranges of the object that are the piece, neighbours in one."""
        ranges: list[tuple[int, int]] = []
        for run_begin, run_end in piece.runs():
            begin = self.offset_of(run_begin, run_end)
            end = begin + run_end - run_begin
            if ranges and ranges[-1][1] == begin:
                begin = ranges.pop()[0]
            ranges.append((begin, end))
        return ranges


Where = Mapping[str, Stored]
"""By file of the checkpoint."""


def own(folder: str, file: FilePlan) -> Stored:
    """A file that was sent to the folder of its checkpoint."""
    return Stored(f"{folder}/{file.name}", _runs(file))


def shared_object(file: FilePlan) -> Stored:
    """Where a source goes that the store has nothing of; the name says which bytes it holds."""
    digest = hashlib.sha256(repr(sorted(_checks(file))).encode()).hexdigest()[:16]
    return Stored(f"{SHARED}/{file.name}-{digest}", _runs(file))


def dump(where: Where) -> bytes:
    """The content of ``where.json``."""
    return json.dumps({name: [stored.object, stored.runs] for name, stored in where.items()}).encode()


def load(raw: bytes, url: str) -> dict[str, Stored]:
    """The inverse of :func:`dump`.

    Raises:
        DamagedCheckpointError: ``raw`` is something else.
    """
    try:
        said = json.loads(raw)
        return {name: Stored(str(o), tuple((int(b), int(e)) for b, e in runs)) for name, (o, runs) in said.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"{url}/{WHERE}: {error}") from error


@dataclass(frozen=True)
class Content:
    """What a checkpoint in a store consists of."""

    files: Mapping[str, FilePlan]
    where: Where


def expected(store: Store, folder: str, files: Collection[FilePlan], where: Where) -> dict[str, int]:
    """Every object that a checkpoint needs, with its size, bytes."""
    sizes = {}
    for file in files:
        if (stored := where.get(file.name)) is not None:
            sizes[stored.object] = sum(end - begin for begin, end in stored.runs)
        else:
            sizes[f"{folder}/{file.name}"] = store.size_bytes(file)
    return sizes


def missing(store: Store, sizes: Mapping[str, int]) -> dict[str, str]:
    """Which objects a store has not, or not with their size; each with what was found."""
    listing: Listing = {}
    for folder in {name.rpartition("/")[0] for name in sizes}:
        listing |= store.listing(folder)
    found = {name: listing.get(name.rpartition("/")[0], {}).get(name.rpartition("/")[2]) for name in sizes}
    return {name: f"{name}: {found[name]} of {size} bytes" for name, size in sizes.items() if found[name] != size}


def read_where(store: Store, folder: str, files: Collection[FilePlan], get: Callable[[str], bytes]) -> Where:
    """Where a checkpoint's files are that do not simply lie in its folder.

    Raises:
        DamagedCheckpointError: it does not say so.
    """
    if store.has_links or not any(file.is_source for file in files):
        return {}
    url = store.step_url(folder)
    try:
        return load(get(f"{folder}/{WHERE}"), url)
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{url}/{WHERE} is missing") from error


def read_piece(store: Store, folder: str, file: FilePlan, piece: Piece, where: Where) -> bytes:
    """A piece of a checkpoint's file, from wherever it is.

    Raises:
        FileNotFoundError: the object is not there.
    """
    if file.name not in where:
        return store.read(f"{folder}/{file.name}", piece)
    try:
        ranges = where[file.name].ranges_of(piece)
    except ValueError as error:
        raise DamagedCheckpointError(f"{store.step_url(folder)}/{WHERE}: {error}") from error
    name, begin, end = where[file.name].object, ranges[0][0], ranges[-1][1]
    if end - begin > MAX_SPREAD * piece.size_bytes:
        return b"".join(store.get(name, *one) for one in ranges)
    hull = memoryview(store.get(name, begin, end))  # one request, although not all of it is wanted
    return b"".join(hull[one[0] - begin : one[1] - begin] for one in ranges)


class Shelf:
    """Finds what a store already has of a file that checkpoints share; remembers the last checkpoints it looked at."""

    KEPT = 4

    def __init__(self, store: Store, get: Callable[[str], bytes], part_bytes: int) -> None:
        self._store = store
        self._get = get
        self._part_bytes = part_bytes
        self._contents: dict[str, Content] = {}
        self._references: dict[str, frozenset[str]] = {}

    def find(self, file: FilePlan, steps: Collection[int], listing: Listing) -> Iterator[Stored]:
        """Where a store has all that ``file``, a source, holds for its checkpoint.

        Args:
            file: of a checkpoint that is to be sent.
            steps: whole ones in the store.
            listing: of the store.
        """
        wanted = _checks(file)
        for candidate, stored in self._candidates(file.name, steps):
            folder, _, name = stored.object.rpartition("/")
            if name in listing.get(folder, {}) and wanted <= _checks(candidate):
                yield stored

    def add(self, step: int, files: Collection[FilePlan], where: Where) -> None:
        """A checkpoint was sent: the next one is likely to share files with it."""
        self._contents[step_name(step)] = Content({file.name: file for file in files}, where)
        self._references[step_name(step)] = _objects(where)  # not those of one that made way for it
        while len(self._contents) > self.KEPT:
            del self._contents[next(iter(self._contents))]

    def referenced(self, steps: Collection[int], listing: Listing) -> set[str]:
        """Objects that these checkpoints refer to; one that does not say so can refer to none."""
        folders = [step_name(step) for step in steps if WHERE in listing.get(step_name(step), {})]
        self._references = {folder: self._references.get(folder) or self._read(folder) for folder in folders}
        return set().union(*self._references.values())

    def _read(self, folder: str) -> frozenset[str]:
        try:
            return _objects(self._read_twice(folder))
        except (DamagedCheckpointError, FileNotFoundError):
            return frozenset()

    def _read_twice(self, folder: str) -> Where:
        """A second time if need be: what was damaged under way is whole where it comes from, and so are its objects."""
        for _ in range(2):
            try:
                return load(self._get(f"{folder}/{WHERE}"), self._store.step_url(folder))
            except DamagedCheckpointError as error:
                damage = error
        raise damage

    def _candidates(self, name: str, steps: Collection[int]) -> Iterator[tuple[FilePlan, Stored]]:
        match = _SOURCE.fullmatch(name)
        assert match is not None, f"{name} is no source"
        rank, origin = match[1], int(match[2])
        for step in sorted(steps, reverse=True):
            if step < origin:
                continue
            try:
                content = self._content(step)
            except DamagedCheckpointError:
                continue
            for file in content.files.values():
                if file.name == name or (step == origin and file.name in (f"{rank}.safetensors", f"{rank}.{DELTA}")):
                    yield file, content.where.get(file.name, own(step_name(step), file))

    def _content(self, step: int) -> Content:
        folder = step_name(step)
        if folder not in self._contents:
            url = self._store.step_url(folder)
            try:
                raw = self._get(f"{folder}/{manifest.FILE_NAME}")
            except FileNotFoundError as error:
                raise DamagedCheckpointError(f"{url} has gone") from error
            files = plan_files(manifest.load(raw, url), self._part_bytes)
            self.add(step, files, read_where(self._store, folder, files, self._get))
        return self._contents[folder]


def _objects(where: Where) -> frozenset[str]:
    return frozenset(stored.object for stored in where.values())


def _checks(file: FilePlan) -> set[Check]:
    return {check for piece in file.pieces for check in piece.checks}


def _runs(file: FilePlan) -> tuple[tuple[int, int], ...]:
    if not file.pieces:
        return ()
    return tuple(Piece(tuple(check for piece in file.pieces for check in piece.checks), 0).runs())
