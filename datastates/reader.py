"""Reading a published checkpoint at random: one tensor, a part of one, many of them, or its Python state.

Needs no process group, no live state and no lock; reads, and verifies, only the extents that hold what
is asked for.

reader = datastates.open_checkpoint("runs/gpt")
weight = reader.read("model.layers.0.weight", Box((0, 0), (16, 512)))
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from datastates import manifest as manifests
from datastates.directory import (
    CheckpointDirectory,
    header_problem,
    parse_objects,
    read_manifest,
    read_objects,
    size_problem,
)
from datastates.dtypes import dtype_name, dtype_of
from datastates.errors import DamagedCheckpointError
from datastates.loading import Target, damaged_extents, extent_bounds, load, plan_load, tensors_in
from datastates.manifest import DataFile, Manifest, TensorInfo
from datastates.plan import per_rank_name
from datastates.sight.bus import emit, sinks
from datastates.sight.events import DamageFound, Origin
from datastates.typed_json import decode, special_objects
from oneflow_sbp import Box

VERIFY_BATCH_BYTES = 256 << 20
"""Between two reports of :meth:`CheckpointReader.verify`'s progress."""


@dataclass(frozen=True)
class Damage:
    """Bytes of a file that are not what was written."""

    file: str
    """Name within the checkpoint's directory."""
    begin: int
    end: int
    """Half-open range of the file, bytes."""
    tensors: tuple[str, ...]
    """Stored names of the tensors that have bytes in the range."""
    what: str
    """What was found, what was expected."""


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    threads: int = 4,
    direct_io: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> CheckpointReader:
    """Open a checkpoint for reading.

    Args:
        path: a checkpoint, or a directory of checkpoints: its newest one whose files are all there. Or the URL of
            either (``s3://bucket/run``): that one is fetched, verified, to a temporary directory, which goes with the
            reader.
        threads: reads in flight.
        direct_io: bypass the page cache where the file system allows it.
        storage_options: of a URL: what fsspec's file system is made with; by default what the environment says.

    Raises:
        FileNotFoundError: there is no checkpoint at ``path``.
        DamagedCheckpointError: the checkpoint's manifest is damaged or, in a directory, no checkpoint is whole.
        ImportError: a URL needs a package that is not installed.
    """
    if "://" in os.fspath(path):
        from datastates.remote import open_url

        return open_url(os.fspath(path), storage_options, threads=threads, direct_io=direct_io)
    path = Path(path)
    if (path / manifests.FILE_NAME).exists() or CheckpointDirectory.is_step(path):
        manifest = read_manifest(path, files=False, on_demand=True)
        return CheckpointReader(path, manifest, threads=threads, direct_io=direct_io)
    directory = CheckpointDirectory(path)
    damaged = []
    for step in reversed(directory.steps()):
        found = directory.of_step(step)
        try:
            manifest = read_manifest(found, on_demand=True)
            return CheckpointReader(found, manifest, threads=threads, direct_io=direct_io)
        except DamagedCheckpointError as error:
            damaged.append(str(error))
    if damaged:
        raise DamagedCheckpointError(f"no checkpoint of {path} is whole: {'; '.join(damaged)}")
    raise FileNotFoundError(
        f"{path} holds no checkpoint: expected {manifests.FILE_NAME} or directories step-<step> in it"
    )


class CheckpointReader:
    """A checkpoint, open for reading. Holds no file open; threads may share it."""

    def __init__(self, path: Path, manifest: Manifest, *, threads: int = 4, direct_io: bool = True) -> None:
        self.path = path
        self.manifest = manifest
        self._threads = threads
        self._direct_io = direct_io

    def names(self) -> list[str]:
        """Stored names, in the order of the manifest; its ``aliases`` are further names of the same tensors."""
        return list(self.manifest.tensors)

    def info(self, name: str) -> TensorInfo:
        """Element type, shape and stored boxes of a tensor.

        Raises:
            ValueError: no tensor has that name.
        """
        return self.manifest.tensors[self._stored(name)]

    def read(
        self, name: str, box: Box | None = None, *, out: torch.Tensor | None = None, verify: bool = True
    ) -> torch.Tensor:
        """A tensor, or the part ``box`` of it.

        Args:
            name: stored name or alias.
            box: which part; all of it if ``None``.
            out: [*box.sizes], of the stored dtype, any device and strides; takes the values. A new, contiguous host
                tensor if ``None``.
            verify: check every extent that holds wanted bytes, and so read it whole; else only the pages that hold
                wanted bytes are read, and trusted.

        Raises:
            ValueError: no such tensor, the box leaves it, or ``out`` does not fit.
            DamagedCheckpointError: bytes are not what was written; ``out`` may hold some of them then.
        """
        target = self._target(name, box, out)
        self._load([target], verify)
        return target.tensor

    def read_many(self, boxes: Mapping[str, Box | None], *, verify: bool = True) -> dict[str, torch.Tensor]:
        """Several tensors or parts at once, all files in parallel; see :meth:`read`."""
        targets = {name: self._target(name, box, None) for name, box in boxes.items()}
        self._load(list(targets.values()), verify)
        return {name: target.tensor for name, target in targets.items()}

    def python(self, rank: int = 0, *, allow_pickle: bool = False) -> dict[str, Any]:
        """The Python state of a rank: section of the saved state -> value, tensors inside values included.

        Raises:
            ValueError: no such rank, or a pickle without ``allow_pickle``.
            DamagedCheckpointError: the file or a tensor is not what was written.
        """
        encoded = self.encoded_python(rank)
        path = self.path / self.manifest.objects[rank].name
        try:
            wanted = [item["name"] for item in special_objects(encoded) if item["$"] == "tensor"]
            stored = {name: self._stored_for(rank, name) for name in wanted}
        except (ValueError, DamagedCheckpointError) as error:
            raise DamagedCheckpointError(f"{path}: {error}") from error
        tensors = self.read_many(dict.fromkeys(stored.values()))
        try:
            return decode(encoded, lambda name: tensors[stored[name]], allow_pickle)
        except (ValueError, DamagedCheckpointError) as error:
            kind = ValueError if isinstance(error, ValueError) else DamagedCheckpointError
            raise kind(f"{path}: {error}") from error

    def encoded_python(self, rank: int = 0) -> dict[str, Any]:
        """The Python state of a rank as it is stored: typed JSON, see ``docs/format.md``."""
        return parse_objects(self.objects_text(rank), str(self.path / self.manifest.objects[rank].name))

    def objects_text(self, rank: int = 0) -> bytes:
        """The bytes of that JSON, verified."""
        if not 0 <= rank < len(self.manifest.objects):
            raise ValueError(f"{self.path} was saved by {self.manifest.num_ranks} ranks, there is no rank {rank}")
        return self._read_objects(rank)

    def _read_objects(self, rank: int) -> bytes:
        return read_objects(self.path, self.manifest.objects[rank])

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[Damage]:
        """Read everything there is and compare it with the checksums.

        Args:
            progress: called with (bytes read so far, bytes in all).

        Returns:
            All damage, by file and position; an empty list if the checkpoint is whole.
        """
        manifest = self.manifest
        if problem := _entries_problem(manifest):
            return [Damage(manifests.FILE_NAME, 0, 0, (), problem)]
        total = sum(f.size_bytes for f in manifest.files) + sum(o.size_bytes for o in manifest.objects)
        done = 0
        found: list[Damage] = []
        for number, file in enumerate(manifest.files):
            for batch in self._verify_file(number, file, found):
                done += batch
                if progress is not None:
                    progress(done, total)
        for objects in manifest.objects:
            try:
                read_objects(self.path, objects)
            except DamagedCheckpointError as error:
                found.append(Damage(objects.name, 0, objects.size_bytes, (), str(error)))
        if progress is not None:
            progress(total, total)
        if found and sinks:
            what = "; ".join(damage.what for damage in found[:8])
            emit(DamageFound(Origin(str(self.path.parent), rank=0), step=manifest.step, what=what))
        return found

    def _verify_file(self, number: int, file: DataFile, found: list[Damage]) -> Iterator[int]:
        """Add what is damaged to ``found``; yields the sizes of what has been read."""
        for name in file.names:
            if problem := size_problem(self.path / name, file.size_bytes):
                found.append(Damage(name, 0, file.size_bytes, self._tensors_in(number), problem))
                yield file.size_bytes
                return
            if problem := header_problem(self.path / name, file):
                found.append(Damage(name, 0, file.header_bytes, (), problem))
        yield file.header_bytes
        bounds = extent_bounds(file)
        for batch in batches(bounds, VERIFY_BATCH_BYTES):
            begin, end = bounds[batch.start], bounds[batch.stop]
            try:
                found += self._damage_in(number, file, bounds, batch)
            except DamagedCheckpointError as error:
                found.append(Damage(file.name, begin, end, self._tensors_in(number, begin, end), str(error)))
            yield end - begin

    def _damage_in(self, number: int, file: DataFile, bounds: list[int], extents: range) -> list[Damage]:
        bad = damaged_extents(
            self.path, self.manifest, number, extents, threads=self._threads, direct_io=self._direct_io
        )
        damage = []
        for extent in bad:
            begin, end = bounds[extent], bounds[extent + 1]
            name = file.holder(extent)
            what = (
                f"{self.path / name}: checksum mismatch in bytes [{begin}, {end}), "
                f"expected CRC32C {file.extent_crc32c[extent]:08x}"
            )
            damage.append(Damage(name, begin, end, self._tensors_in(number, begin, end), what))
        return damage

    def _tensors_in(self, file: int, begin: int = 0, end: int = 1 << 63) -> tuple[str, ...]:
        return tuple(tensors_in(self.manifest, file, [(begin, end)]))

    def _load(self, targets: list[Target], verify: bool) -> None:
        plan = plan_load(self.manifest.tensors, targets)
        load(self.path, self.manifest, plan, threads=self._threads, direct_io=self._direct_io, verify=verify)

    def _target(self, name: str, box: Box | None, out: torch.Tensor | None) -> Target:
        stored = self._stored(name)
        info = self.manifest.tensors[stored]
        dtype = dtype_of(info.dtype)
        box = box or Box.whole(info.shape)
        if not box.inside(info.shape):
            raise ValueError(f"{box} leaves {name}, which is {info.dtype}{list(info.shape)} in {self.path}")
        if out is None:
            return Target(stored, torch.empty(box.sizes, dtype=dtype), box)
        if out.dtype != dtype or tuple(out.shape) != box.sizes:
            raise ValueError(
                f"out is {dtype_name(out.dtype)}{list(out.shape)}, expected {info.dtype}{list(box.sizes)}, as "
                f"{name} is in {self.path}; make one of that type, or leave out= away"
            )
        return Target(stored, out, box)

    def _stored(self, name: str) -> str:
        for candidate in (name, self.manifest.aliases.get(name, name)):
            if candidate in self.manifest.tensors:
                return candidate
        near = difflib.get_close_matches(name, [*self.manifest.tensors, *self.manifest.aliases], n=3, cutoff=0.5)
        hint = f"; similar: {', '.join(near)}" if near else ""
        raise ValueError(f"{self.path} has no tensor {name!r}{hint}; names() lists all {len(self.manifest.tensors)}")

    def _stored_for(self, rank: int, name: str) -> str:
        """Where rank ``rank``'s value of ``name`` is: its own, or the common one."""
        own = per_rank_name(rank, name)
        return own if own in self.manifest.tensors else self._stored(name)


def _entries_problem(manifest: Manifest) -> str | None:
    """What is wrong with a tensor's entry of a manifest, which is checked when it is asked for."""
    try:
        for name in manifest.tensors:
            manifest.tensors[name]
    except DamagedCheckpointError as error:
        return str(error)
    return None


def batches(bounds: Sequence[int], batch_bytes: int) -> Iterator[range]:
    """Consecutive extents in groups of at most ``batch_bytes``; a larger extent is a group of its own."""
    first = 0
    while first < len(bounds) - 1:
        last = first + 1
        while last < len(bounds) - 1 and bounds[last + 1] - bounds[first] <= batch_bytes:
            last += 1
        yield range(first, last)
        first = last
