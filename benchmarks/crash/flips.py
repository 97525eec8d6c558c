"""A bit flipped, a file cut or grown, in every kind of file of a checkpoint: all of it found, and named."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import datastates
from benchmarks.crash.job import empty_state
from benchmarks.crash.verdict import Promise, differs, quiet
from datastates import manifest

KINDS = ("header", "payload", "objects", "manifest")


@dataclass
class Damaged:
    """What came of damaging a checkpoint."""

    bit_flips: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    truncations: int = 0
    undetected: int = 0
    misnamed: int = 0
    """Found, but not with the right file and tensor."""
    wrong_bytes: int = 0
    """Restored although the values are not those that were saved."""
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Region:
    """A part of a file that is damaged in one way."""

    kind: str
    path: Path
    begin: int
    end: int

    def tensors_at(self, found: manifest.Manifest, offset: int) -> set[str]:
        """Which tensors have the byte at ``offset``; none outside payloads."""
        if self.kind != "payload":
            return set()
        number = [file.name for file in found.files].index(self.path.name)
        return {
            name
            for name, info in found.tensors.items()
            if any(s.file == number and s.begin <= offset < s.end for s in info.shards)
        }


def damage(checkpoint: Path, scratch: Path, flips_per_kind: int, seed: int = 0, generation: int = 0) -> Damaged:
    """Damage copies of a checkpoint in many ways and look whether it is noticed.

    Args:
        checkpoint: a whole one that :mod:`benchmarks.crash.job` saved.
        scratch: a directory for the copy, made if missing.
        flips_per_kind: single bits in each of ``KINDS``.
        seed: decides which.
        generation: of the state in it.
    """
    copy = scratch / checkpoint.name
    shutil.copytree(checkpoint, copy)
    whole = datastates.open_checkpoint(copy).manifest
    judge = _Judge(copy, whole, generation)
    judge.whole()
    randomly = random.Random(seed)
    with quiet():
        for kind in KINDS:
            regions = [region for region in _regions(copy, whole) if region.kind == kind]
            for _ in range(flips_per_kind):
                region = randomly.choice(regions)
                offset, bit = randomly.randrange(region.begin, region.end), randomly.randrange(8)
                with _flipped(region.path, offset, bit):
                    judge.look(region, f"bit {bit} of byte {offset}", region.tensors_at(whole, offset))
                judge.found.bit_flips[kind] += 1
        for region, size in _cuts(_regions(copy, whole), randomly):
            with _resized(region.path, size):
                judge.look(region, f"{size} bytes instead of {region.end}", set())
            judge.found.truncations += 1
    judge.whole()
    shutil.rmtree(copy)
    return judge.found


class _Judge:
    """Looks at a damaged checkpoint as ``verify`` and ``restore`` see it."""

    def __init__(self, checkpoint: Path, whole: manifest.Manifest, generation: int) -> None:
        self.found = Damaged()
        self._checkpoint = checkpoint
        self._promise = Promise(possible={whole.step: {generation}}, num_ranks=whole.num_ranks)

    def whole(self) -> None:
        """Nothing is found in what is not damaged."""
        assert self._seen() == []
        assert self._restored() == ""

    def look(self, region: Region, how: str, tensors: set[str]) -> None:
        what = f"{region.path.name} ({region.kind}): {how}"
        seen = self._seen()
        if not seen:
            self._count("undetected", what)
        elif not any(region.path.name in said and all(name in said for name in tensors) for said in seen):
            self._count("misnamed", f"{what}: {seen}")
        restored = self._restored()
        if restored and region.path.name not in restored:
            self._count("misnamed" if restored.startswith("RestoreError") else "wrong_bytes", f"{what}: {restored}")

    def _count(self, kind: str, what: str) -> None:
        setattr(self.found, kind, getattr(self.found, kind) + 1)
        self.found.problems.append(f"{kind}: {what}")

    def _seen(self) -> list[str]:
        """What opening and verifying says."""
        try:
            reader = datastates.open_checkpoint(self._checkpoint, threads=1)
        except datastates.DamagedCheckpointError as error:
            return [str(error)]
        return [f"{damage.what} {' '.join(damage.tensors)}" for damage in reader.verify()]

    def _restored(self) -> str:
        """What restoring on one rank says; it does not read what is another rank's own, so it may succeed."""
        live = empty_state()
        try:
            with datastates.Checkpointer(self._checkpoint.parent, read_threads=1) as checkpoints:
                step = checkpoints.restore(live) - 1
        except datastates.RestoreError as error:
            return f"RestoreError: {error}"
        return differs(live, step, self._promise)


def _regions(checkpoint: Path, whole: manifest.Manifest) -> list[Region]:
    regions = []
    for file in whole.files:
        path = checkpoint / file.name
        regions.append(Region("header", path, 0, file.header_bytes))
        regions.append(Region("payload", path, file.header_bytes, file.size_bytes))
    regions += [Region("objects", checkpoint / o.name, 0, o.size_bytes) for o in whole.objects]
    path = checkpoint / manifest.FILE_NAME
    return [*regions, Region("manifest", path, 0, path.stat().st_size)]


def _cuts(regions: list[Region], randomly: random.Random) -> Iterator[tuple[Region, int]]:
    """Every file at many other sizes, larger ones included."""
    for region in regions:
        if region.kind == "header":
            continue
        size = region.end
        sizes = {0, 1, 7, 8, size // 2, size - 1, size + 1, size + 4096, *range(0, size, 4096)}
        sizes |= {randomly.randrange(size) for _ in range(10)}
        yield from ((region, other) for other in sorted(sizes - {size}))


@contextmanager
def _flipped(path: Path, offset: int, bit: int) -> Iterator[None]:
    def flip() -> None:
        with open(path, "r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1 << bit]))

    yield from _and_back(flip, flip)


@contextmanager
def _resized(path: Path, size: int) -> Iterator[None]:
    content = path.read_bytes()
    yield from _and_back(
        lambda: path.write_bytes(content[:size] + bytes(max(0, size - len(content)))),
        lambda: path.write_bytes(content),
    )


def _and_back(act: Callable[[], object], undo: Callable[[], object]) -> Iterator[None]:
    act()
    try:
        yield
    finally:
        undo()
