"""Loading: which bytes of a checkpoint go where, and the verified reading of them.

A target is a live tensor, or a box of one. Stored boxes that meet it in one contiguous run, or in rows of some length,
are read straight into its memory; others go through a buffer. Planning is pure; :func:`load` executes.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from datastates.bulk import without_gc
from datastates.dtypes import dtype_of
from datastates.errors import DamagedCheckpointError
from datastates.manifest import DataFile, Manifest, Shard, TensorInfo
from oneflow_sbp import Box

import _elastates

MIN_ROW_BYTES = 512
"""Shorter rows are read together with what lies between them, and copied from there."""


class Target(NamedTuple):
    """A tensor to fill: the part ``box`` of the stored tensor ``name``."""

    name: str
    tensor: torch.Tensor
    """[*box.sizes] local, any device and strides."""
    box: Box


class Run(NamedTuple):
    """Bytes ``[begin, end)`` of a data file go to ``offset`` bytes behind a host tensor's first byte."""

    file: int
    begin: int
    end: int
    tensor: torch.Tensor
    offset: int

    @property
    def size(self) -> int:
        return self.end - self.begin


class Rows(NamedTuple):
    """Runs of ``size`` bytes: row ``i`` of ``num_rows`` begins at ``begin + i * stride`` of a data file and goes to
    ``offset + i * step`` bytes behind a host tensor's first byte."""

    file: int
    begin: int
    num_rows: int
    size: int
    stride: int
    tensor: torch.Tensor
    offset: int
    step: int

    @property
    def end(self) -> int:
        return self.begin + (self.num_rows - 1) * self.stride + self.size

    def runs(self) -> list[Run]:
        """One for each row."""
        begins = range(self.begin, self.end, self.stride)
        offsets = range(self.offset, self.offset + self.num_rows * self.step, self.step)
        return [
            Run(self.file, begin, begin + self.size, self.tensor, offset)
            for begin, offset in zip(begins, offsets, strict=True)
        ]


@dataclass(frozen=True)
class Patch:
    """After reading: copy ``part`` of ``hull``, read into ``buffer``, to the same part of the target."""

    buffer: torch.Tensor
    hull: Box
    """The smallest box around ``part`` that is one run of bytes in the file."""
    part: Box
    target: Target


@dataclass(frozen=True)
class LoadPlan:
    """What to read where, and what to copy afterwards."""

    runs: list[Run]
    patches: list[Patch]
    rows: list[Rows] = field(default_factory=list)


@without_gc()
def plan_load(tensors: Mapping[str, TensorInfo], targets: Sequence[Target], *, in_rows: bool = True) -> LoadPlan:
    """Where every stored byte that the targets need has to go. Allocates the buffers, touches nothing else.

    Args:
        tensors: what is stored.
        targets: what is wanted.
        in_rows: plan rows too, which cost neither buffer nor copy; else patches where runs will not do.
    """
    plan = LoadPlan([], [])
    for target in targets:
        info = tensors[target.name]
        tensor = target.tensor
        # Bytes of lazily conjugated or negated views are not their values: those go through a buffer and copy_().
        direct = tensor.is_cpu and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
        for shard in info.shards:
            if direct and shard.box == target.box:
                if shard.end > shard.begin:
                    plan.runs.append(Run(shard.file, shard.begin, shard.end, target.tensor, 0))
                continue
            part = shard.box.intersect(target.box)
            if part is not None:
                _plan_part(plan, info, shard, part, target, direct, in_rows)
    return plan


def _plan_part(
    plan: LoadPlan, info: TensorInfo, shard: Shard, part: Box, target: Target, direct: bool, in_rows: bool
) -> None:
    dtype = dtype_of(info.dtype)
    hull = part.hull_in(shard.box)
    source = hull.flat_range_in(shard.box)
    goal = part.flat_range_in(target.box)
    assert source is not None, "a hull is one run"
    begin, end = (shard.begin + element * dtype.itemsize for element in source)
    if direct and hull == part and goal is not None:
        plan.runs.append(Run(shard.file, begin, end, target.tensor, goal[0] * dtype.itemsize))
        return
    if rows := _rows(shard, part, target, dtype.itemsize) if direct and in_rows else []:
        plan.rows.extend(rows)
        return
    buffer = torch.empty(hull.sizes, dtype=dtype)  # only the run that is needed, and what lies between its pieces
    plan.runs.append(Run(shard.file, begin, end, buffer, 0))
    plan.patches.append(Patch(buffer, hull, part, target))


def _rows(shard: Shard, part: Box, target: Target, itemsize: int) -> list[Rows]:
    """A part of several runs, row by row; nothing if rows are too short to be worth it."""
    stored, live = _strides(shard.box, itemsize), _strides(target.box, itemsize)
    dim = len(part.sizes) - 1  # from here on, a part is one run both in the file and in memory
    while dim > 1 and part.sizes[dim] == shard.box.sizes[dim] == target.box.sizes[dim]:
        dim -= 1
    size = math.prod(part.sizes[dim:]) * itemsize
    if dim < 1 or size < MIN_ROW_BYTES:
        return []
    begin = shard.begin + _offset(part, shard.box, stored)
    offset = _offset(part, target.box, live)
    return [
        Rows(
            shard.file,
            begin + sum(map(operator.mul, index, stored)),
            part.sizes[dim - 1],
            size,
            stored[dim - 1],
            target.tensor,
            offset + sum(map(operator.mul, index, live)),
            live[dim - 1],
        )
        for index in itertools.product(*map(range, part.sizes[: dim - 1]))
    ]


def _strides(box: Box, itemsize: int) -> list[int]:
    """Bytes from one index to the next, per dim, of a row-major tensor that holds ``box``."""
    return [math.prod(box.sizes[dim + 1 :]) * itemsize for dim in range(len(box.sizes))]


def _offset(part: Box, box: Box, strides: Sequence[int]) -> int:
    """Where ``part`` begins, bytes behind the first one of ``box``."""
    return sum(map(operator.mul, map(operator.sub, part.offsets, box.offsets), strides))


def load(
    checkpoint: Path, manifest: Manifest, plan: LoadPlan, *, threads: int, direct_io: bool, verify: bool = True
) -> int:
    """Read and verify what ``plan`` says; returns the bytes read. Without ``verify`` the bytes are trusted.

    The targets' version counters advance, as after any write in place.

    Raises:
        DamagedCheckpointError: bytes are not what was written; names the file, the range and the tensors. Targets may
            hold damaged bytes then.
    """
    by_file: dict[int, list[Run | Rows]] = {}
    runs: list[Run | Rows] = [*plan.runs, *plan.rows]
    for run in runs:
        by_file.setdefault(run.file, []).append(run)
    files = sorted(by_file)
    at_once = max(1, min(threads, len(files)))

    def read_file(file: int) -> int:
        return _read_file(checkpoint, manifest, file, by_file[file], -(-threads // at_once), direct_io, verify)

    if at_once == 1:
        total = sum(map(read_file, files))
    else:
        with ThreadPoolExecutor(at_once, thread_name_prefix="ds-load") as pool:
            total = sum(pool.map(read_file, files))
    with torch.no_grad():
        for patch in plan.patches:
            piece = patch.buffer[patch.part.relative_to(patch.hull)]
            patch.target.tensor[patch.part.relative_to(patch.target.box)].copy_(piece)
    torch.autograd.graph.increment_version([run.tensor for run in runs if not run.tensor.is_inference()])
    return total


def _read_file(
    checkpoint: Path, manifest: Manifest, file: int, runs: list[Run | Rows], threads: int, direct_io: bool, verify: bool
) -> int:
    total = 0
    for layer in _without_overlap(runs):
        damaged, num_bytes = read_runs(
            checkpoint, manifest, file, layer, threads=threads, direct_io=direct_io, verify=verify
        )
        if damaged:
            raise DamagedCheckpointError(describe_damage(checkpoint, manifest, file, damaged))
        total += num_bytes
    return total


def read_runs(
    checkpoint: Path,
    manifest: Manifest,
    file: int,
    runs: Sequence[Run | Rows],
    *,
    threads: int,
    direct_io: bool,
    verify: bool = True,
) -> tuple[list[int], int]:
    """Read ``runs``, which are sorted and do not overlap, of one data file.

    Returns:
        The damaged ones among the extents that the runs touch, and the bytes read. Without ``verify`` only the pages
        that hold wanted bytes are read, and trusted.

    Raises:
        DamagedCheckpointError: the file is missing, cannot be read, or is not as long as it was written.
    """
    info = manifest.files[file]
    damaged: list[int] = []
    total = 0
    for name, part in by_holder(info, runs).items():
        begins, ends, addresses = _scatters(part)
        try:
            found, num_bytes = _elastates.read_verified(
                path=str(checkpoint / name),
                file_size=info.size_bytes,
                first_begin=info.header_bytes,
                extent_ends=info.extent_ends,
                extent_crc32c=info.extent_crc32c,
                begins=begins,
                ends=ends,
                addresses=addresses,
                threads=threads,
                allow_direct=direct_io,
                verify=verify,
            )
        except _elastates.StatusError as error:
            raise DamagedCheckpointError(f"{checkpoint / name}: {error.args[1]}") from error
        damaged += found
        total += num_bytes
    return sorted(damaged), total


def _scatters(runs: Sequence[Run | Rows]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Begins, ends and addresses, uint64 each, of all that sorted runs want."""
    begins = np.array([run.begin for run in runs], dtype=np.uint64)
    sizes = np.array([run.size for run in runs], dtype=np.uint64)
    addresses = np.array([run.tensor.data_ptr() + run.offset for run in runs], dtype=np.uint64)
    counts = np.array([run.num_rows if isinstance(run, Rows) else 1 for run in runs], dtype=np.int64)
    if counts.sum() > len(runs):
        begins, sizes, addresses = (np.repeat(of_run, counts) for of_run in (begins, sizes, addresses))
        row = (np.arange(len(begins)) - np.repeat(np.cumsum(counts) - counts, counts)).astype(np.uint64)
        strides = np.array([run.stride if isinstance(run, Rows) else 0 for run in runs], dtype=np.uint64)
        steps = np.array([run.step if isinstance(run, Rows) else 0 for run in runs], dtype=np.uint64)
        begins += row * np.repeat(strides, counts)
        addresses += row * np.repeat(steps, counts)
    return begins, begins + sizes, addresses


def by_holder(info: DataFile, runs: Sequence[Run | Rows]) -> dict[str, Sequence[Run | Rows]]:
    """The parts of sorted runs, by the file that holds them: of a delta's extents, some lie in earlier files."""
    if info.extent_sources is None:
        return {info.name: runs}
    plain = [one for run in runs for one in (run.runs() if isinstance(run, Rows) else [run])]
    held_by = info.extent_sources
    last_of_a_stretch = np.append(held_by[1:] != held_by[:-1], True)
    ends = info.extent_ends[last_of_a_stretch]
    names = [info.names[source] for source in held_by[last_of_a_stretch]]
    parts: dict[str, list[Run | Rows]] = {}
    for run in plain:
        stretch = int(np.searchsorted(ends, run.begin, side="right"))
        begin = run.begin
        while begin < run.end:
            end = min(run.end, int(ends[stretch]))
            offset = run.offset + (begin - run.begin)
            parts.setdefault(names[stretch], []).append(run._replace(begin=begin, end=end, offset=offset))
            begin = end
            stretch += 1
    return dict(parts)


def damaged_extents(
    checkpoint: Path, manifest: Manifest, file: int, extents: Sequence[int], *, threads: int, direct_io: bool
) -> list[int]:
    """Which of the given extents of a data file, ascending, are not what was written; keeps nothing of what it reads.

    One byte is asked of every extent: verifying it reads the whole extent.

    Raises:
        DamagedCheckpointError: the file is missing, cannot be read, or is not as long as it was written.
    """
    bounds = extent_bounds(manifest.files[file])
    bytes_read = torch.empty(len(extents), dtype=torch.uint8)
    runs = [Run(file, bounds[e], bounds[e] + 1, bytes_read, i) for i, e in enumerate(extents)]
    return read_runs(checkpoint, manifest, file, runs, threads=threads, direct_io=direct_io)[0]


def extent_bounds(file: DataFile) -> list[int]:
    """Extent ``i`` of the file is bytes ``[bounds[i], bounds[i + 1])``."""
    return [file.header_bytes, *file.extent_ends.tolist()]


def _without_overlap(runs: list[Run | Rows]) -> list[list[Run | Rows]]:
    """Sorted runs, in as few lists without overlap as a first fit gives: two targets may want the same bytes."""
    layers: list[list[Run | Rows]] = []
    for run in sorted(runs, key=lambda run: run.begin):
        for layer in layers:
            if layer[-1].end <= run.begin:
                layer.append(run)
                break
        else:
            layers.append([run])
    return layers


def describe_damage(checkpoint: Path, manifest: Manifest, file: int, damaged: Sequence[int]) -> str:
    """A message that names the damaged ranges of a file and the tensors in them."""
    info = manifest.files[file]
    bounds = extent_bounds(info)
    ranges = [(bounds[i], bounds[i + 1]) for i in damaged]
    names = tensors_in(manifest, file, ranges)
    holders = ", ".join(str(checkpoint / name) for name in dict.fromkeys(info.holder(i) for i in damaged))
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    where = ", ".join(f"[{begin}, {end})" for begin, end in ranges[:8])
    return f"{holders}: checksum mismatch in bytes {where}, which hold {shown}"


def tensors_in(manifest: Manifest, file: int, ranges: Sequence[tuple[int, int]]) -> list[str]:
    """Names of the tensors that have bytes in some of the ranges of a data file, sorted."""
    return sorted(
        name
        for name, tensor in manifest.tensors.items()
        if any(s.file == file and s.begin < end and begin < s.end for s in tensor.shards for begin, end in ranges)
    )
