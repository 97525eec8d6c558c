"""Repair: what can be put together again from a damaged checkpoint and other copies of it.

Nothing is changed in place. A repaired checkpoint is a new directory: intact files are linked into it, others are put
together range by range from whichever copy has the bytes that the manifest's checksum asks for, all of it is verified,
and only then it takes the damaged one's place, which is kept under another name.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datastates import manifest as manifests
from datastates import storage_ops
from datastates.directory import CheckpointDirectory, header_problem, read_manifest, step_name
from datastates.errors import DamagedCheckpointError
from datastates.loading import extent_bounds
from datastates.manifest import DataFile, Manifest
from datastates.reader import CheckpointReader, Damage

import _elastates


@dataclass(frozen=True)
class Stretch:
    """Bytes ``[begin, end)`` of a file, and their CRC32C."""

    begin: int
    end: int
    crc32c: int


@dataclass(frozen=True)
class Case:
    """A damaged checkpoint, and what can be done about it."""

    step: int
    path: Path
    """Where what is left of it is."""
    damage: tuple[Damage, ...]
    copies: tuple[Path, ...]
    """Other directories that may hold the same checkpoint."""
    manifest: Manifest | None
    """Its own, or a copy's where its own is lost and the copy is of the same checkpoint."""
    manifest_path: Path | None
    missing: tuple[str, ...]
    """Files for which some bytes are in no copy."""

    @property
    def can_be_mended(self) -> bool:
        return self.manifest is not None and not self.missing


def copies_of(step: int, others: Sequence[Path]) -> tuple[Path, ...]:
    """Where ``others``, directories of checkpoints or checkpoints, may have the checkpoint of ``step``."""
    found = [other if other.name == step_name(step) else other / step_name(step) for other in others]
    return tuple(path for path in found if path.is_dir())


def examine(step: int, path: Path, damage: Sequence[Damage], others: Sequence[Path]) -> Case:
    """What can be done about a damaged checkpoint. Reads its damaged files, from all copies; changes nothing."""
    copies = copies_of(step, others)
    found = _manifest(step, path, copies)
    if found is None:
        return Case(step, path, tuple(damage), copies, None, None, ())
    manifest, manifest_path = found
    missing = []
    for name in sorted(_suspects(manifest, damage, manifest_path.parent == path)):
        try:
            for _ in whole_stretches(name, file_stretches(manifest)[name], (path, *copies)):
                pass
        except DamagedCheckpointError:
            missing.append(name)
    return Case(step, path, tuple(damage), copies, manifest, manifest_path, tuple(missing))


def _suspects(manifest: Manifest, damage: Sequence[Damage], own_manifest: bool) -> set[str]:
    """Files that may be damaged: all, if the manifest that says what they are is a copy's.

    Of files that hold one data file together, as a delta's do, one that is damaged as a whole hides what others lack.
    """
    if not own_manifest:
        return set(file_stretches(manifest))
    named = {item.file for item in damage} - {manifests.FILE_NAME}
    for file in manifest.files:
        if named.intersection(file.names):
            named.update(file.names)
    return named


def _manifest(step: int, path: Path, copies: Sequence[Path]) -> tuple[Manifest, Path] | None:
    for candidate in (path, *copies):
        with contextlib.suppress(DamagedCheckpointError):
            manifest = read_manifest(candidate, files=False)
            if manifest.step == step and (candidate == path or _is_of(manifest, path)):
                return manifest, candidate / manifests.FILE_NAME
    return None


def _is_of(manifest: Manifest, path: Path) -> bool:
    """Whether some data of ``path`` is as ``manifest`` says: then both are of one checkpoint, not only of one step."""
    for file in manifest.files:
        whole = file_stretches(manifest)[file.name]
        if header_problem(path / file.name, file) is None and any(
            read_stretch(path / file.name, stretch) is not None for stretch in whole[1:]
        ):
            return True
    return False


def file_stretches(manifest: Manifest) -> dict[str, list[Stretch]]:
    """What every file of a checkpoint consists of, by name: its header and extents; Python state is one stretch."""
    found = {name: _data_stretches(file, name) for file in manifest.files for name in file.names}
    return found | {objects.name: [Stretch(0, objects.size_bytes, objects.crc32c)] for objects in manifest.objects}


def _data_stretches(file: DataFile, name: str) -> list[Stretch]:
    """Header and extents that one of a data file's holders has; of a delta, the rest are holes, or not this step's."""
    bounds = extent_bounds(file)
    extents = zip(bounds[:-1], bounds[1:], file.extent_crc32c.tolist(), strict=True)
    held = [Stretch(*extent) for index, extent in enumerate(extents) if file.holder(index) == name]
    return [Stretch(0, file.header_bytes, file.header_crc32c), *held]


def whole_stretches(name: str, stretches: Sequence[Stretch], copies: Sequence[Path]) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of every stretch of a file, each from the first copy that has it whole.

    Raises:
        DamagedCheckpointError: no copy has some stretch.
    """
    for stretch in stretches:
        for copy in copies:
            if (content := read_stretch(copy / name, stretch)) is not None:
                yield stretch.begin, content
                break
        else:
            raise DamagedCheckpointError(f"bytes [{stretch.begin}, {stretch.end}) of {name} are whole in no copy")


def read_stretch(path: Path, stretch: Stretch) -> bytes | None:
    """The bytes, if the file has them and they are what was written."""
    try:
        with open(path, "rb") as file:
            file.seek(stretch.begin)
            content = file.read(stretch.end - stretch.begin)
    except OSError:
        return None  # as good as damaged
    whole = len(content) == stretch.end - stretch.begin and _elastates.crc32c(content) == stretch.crc32c
    return content if whole else None


def mend(directory: CheckpointDirectory, case: Case) -> Path:
    """Publish a repaired checkpoint; the damaged one is kept under another name. The lock must be held.

    Raises:
        DamagedCheckpointError: what was put together is not whole after all; nothing has been published.
    """
    assert case.manifest is not None and case.manifest_path is not None
    attempt = directory.begin(case.step)
    try:
        suspects = _suspects(case.manifest, case.damage, case.manifest_path.parent == case.path)
        sizes = {name: file.size_bytes for file in case.manifest.files for name in file.names}
        sizes |= {objects.name: objects.size_bytes for objects in case.manifest.objects}
        for name, stretches in file_stretches(case.manifest).items():
            if name in suspects:
                _put_together(attempt / name, sizes[name], stretches, (case.path, *case.copies))
            else:
                _link(case.path / name, attempt / name)
        storage_ops.write_synced(attempt / manifests.FILE_NAME, case.manifest_path.read_bytes())
        if left := CheckpointReader(attempt, case.manifest).verify():
            raise DamagedCheckpointError(f"step {case.step} is not whole after repair: {left[0].what}")
        return directory.publish(attempt, case.step, damaged=[case.step])
    except BaseException:
        directory.discard(attempt)
        raise


def _put_together(path: Path, size_bytes: int, stretches: Sequence[Stretch], copies: Sequence[Path]) -> None:
    file = storage_ops.PieceFile(path)
    file.set_length(size_bytes)
    for begin, content in whole_stretches(path.name, stretches, copies):
        file.write(content, begin)
    storage_ops.sync_file(file)


def _link(source: Path, destination: Path) -> None:
    """The same file under a second name: published files never change. A copy where there are no links."""
    try:
        storage_ops.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)
        storage_ops.sync_file(storage_ops.PieceFile(destination))
