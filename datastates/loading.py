"""Loading: which bytes of a checkpoint go where, and the verified reading of them.

A target is a live tensor, or a box of one. Stored boxes that meet it in one contiguous run are read straight into its
memory; others go through a buffer. Planning is pure; :func:`load` executes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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


@without_gc()
def plan_load(tensors: Mapping[str, TensorInfo], targets: Sequence[Target]) -> LoadPlan:
    """Where every stored byte that the targets need has to go. Allocates the buffers, touches nothing else."""
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
                _plan_part(plan, info, shard, part, target, direct)
    return plan


def _plan_part(plan: LoadPlan, info: TensorInfo, shard: Shard, part: Box, target: Target, direct: bool) -> None:
    dtype = dtype_of(info.dtype)
    hull = part.hull_in(shard.box)
    source = hull.flat_range_in(shard.box)
    goal = part.flat_range_in(target.box)
    assert source is not None, "a hull is one run"
    begin, end = (shard.begin + element * dtype.itemsize for element in source)
    if direct and hull == part and goal is not None:
        plan.runs.append(Run(shard.file, begin, end, target.tensor, goal[0] * dtype.itemsize))
        return
    buffer = torch.empty(hull.sizes, dtype=dtype)  # only the run that is needed, and what lies between its pieces
    plan.runs.append(Run(shard.file, begin, end, buffer, 0))
    plan.patches.append(Patch(buffer, hull, part, target))


def load(
    checkpoint: Path, manifest: Manifest, plan: LoadPlan, *, threads: int, direct_io: bool, verify: bool = True
) -> int:
    """Read and verify what ``plan`` says; returns the bytes read. Without ``verify`` the bytes are trusted.

    The targets' version counters advance, as after any write in place.

    Raises:
        DamagedCheckpointError: bytes are not what was written; names the file, the range and the tensors. Targets may
            hold damaged bytes then.
    """
    by_file: dict[int, list[Run]] = {}
    for run in plan.runs:
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
    torch.autograd.graph.increment_version([run.tensor for run in plan.runs if not run.tensor.is_inference()])
    return total


def _read_file(
    checkpoint: Path, manifest: Manifest, file: int, runs: list[Run], threads: int, direct_io: bool, verify: bool
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
    runs: Sequence[Run],
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
        try:
            found, num_bytes = _elastates.read_verified(
                path=str(checkpoint / name),
                file_size=info.size_bytes,
                first_begin=info.header_bytes,
                extent_ends=info.extent_ends,
                extent_crc32c=info.extent_crc32c,
                begins=np.array([run.begin for run in part], dtype=np.uint64),
                ends=np.array([run.end for run in part], dtype=np.uint64),
                addresses=np.array([run.tensor.data_ptr() + run.offset for run in part], dtype=np.uint64),
                threads=threads,
                allow_direct=direct_io,
                verify=verify,
            )
        except _elastates.StatusError as error:
            raise DamagedCheckpointError(f"{checkpoint / name}: {error.args[1]}") from error
        damaged += found
        total += num_bytes
    return sorted(damaged), total


def by_holder(info: DataFile, runs: Sequence[Run]) -> dict[str, Sequence[Run]]:
    """The parts of sorted runs, by the file that holds them: of a delta's extents, some lie in earlier files."""
    if info.extent_sources is None:
        return {info.name: runs}
    held_by = info.extent_sources
    last_of_a_stretch = np.append(held_by[1:] != held_by[:-1], True)
    ends = info.extent_ends[last_of_a_stretch]
    names = [info.names[source] for source in held_by[last_of_a_stretch]]
    parts: dict[str, list[Run]] = {}
    for run in runs:
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


def _without_overlap(runs: list[Run]) -> list[list[Run]]:
    """Sorted runs, in as few lists without overlap as a first fit gives: two targets may want the same bytes."""
    layers: list[list[Run]] = []
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
