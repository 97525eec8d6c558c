"""Loading: which bytes of a checkpoint go where, and the verified reading of them.

A target is a live tensor, or a box of one. Stored boxes that meet it in one contiguous run are read straight into its
memory; others go through a buffer of the stored box. Planning is pure; :func:`load` executes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from datastates.bulk import without_gc
from datastates.dtypes import dtype_of
from datastates.errors import DamagedCheckpointError
from datastates.manifest import Manifest, Shard, TensorInfo
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
    """After reading: copy ``part`` of a stored box, read into ``buffer``, to the same part of the target."""

    buffer: torch.Tensor
    shard_box: Box
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
    source = part.flat_range_in(shard.box)
    goal = part.flat_range_in(target.box)
    if direct and source is not None and goal is not None:
        begin = shard.begin + source[0] * dtype.itemsize
        end = shard.begin + source[1] * dtype.itemsize
        plan.runs.append(Run(shard.file, begin, end, target.tensor, goal[0] * dtype.itemsize))
        return
    if source is not None:  # only the run that is needed
        buffer = torch.empty(part.sizes, dtype=dtype)
        begin = shard.begin + source[0] * dtype.itemsize
        plan.runs.append(Run(shard.file, begin, begin + buffer.nbytes, buffer, 0))
        plan.patches.append(Patch(buffer, part, part, target))
        return
    buffer = torch.empty(shard.box.sizes, dtype=dtype)
    plan.runs.append(Run(shard.file, shard.begin, shard.end, buffer, 0))
    plan.patches.append(Patch(buffer, shard.box, part, target))


def load(checkpoint: Path, manifest: Manifest, plan: LoadPlan, *, threads: int, direct_io: bool) -> int:
    """Read and verify what ``plan`` says; returns the bytes read.

    The targets' version counters advance, as after any write in place.

    Raises:
        DamagedCheckpointError: bytes are not what was written; names the file, the range and the tensors. Targets may
            hold damaged bytes then.
    """
    by_file: dict[int, list[Run]] = {}
    for run in plan.runs:
        by_file.setdefault(run.file, []).append(run)
    total = 0
    for file, runs in sorted(by_file.items()):
        total += _read_file(checkpoint, manifest, file, runs, threads, direct_io)
    with torch.no_grad():
        for patch in plan.patches:
            piece = patch.buffer[patch.part.relative_to(patch.shard_box)]
            patch.target.tensor[patch.part.relative_to(patch.target.box)].copy_(piece)
    torch.autograd.graph.increment_version([run.tensor for run in plan.runs if not run.tensor.is_inference()])
    return total


def _read_file(checkpoint: Path, manifest: Manifest, file: int, runs: list[Run], threads: int, direct_io: bool) -> int:
    info = manifest.files[file]
    total = 0
    for layer in _without_overlap(runs):
        try:
            damaged, num_bytes = _elastates.read_verified(
                path=str(checkpoint / info.name),
                file_size=info.size_bytes,
                first_begin=info.header_bytes,
                extent_ends=info.extent_ends,
                extent_crc32c=info.extent_crc32c,
                begins=np.array([run.begin for run in layer], dtype=np.uint64),
                ends=np.array([run.end for run in layer], dtype=np.uint64),
                addresses=np.array([run.tensor.data_ptr() + run.offset for run in layer], dtype=np.uint64),
                threads=threads,
                allow_direct=direct_io,
            )
        except _elastates.StatusError as error:
            raise DamagedCheckpointError(f"{checkpoint / info.name}: {error.args[1]}") from error
        if damaged:
            raise DamagedCheckpointError(describe_damage(checkpoint, manifest, file, damaged))
        total += num_bytes
    return total


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
    bounds = [info.header_bytes, *info.extent_ends.tolist()]
    ranges = [(bounds[i], bounds[i + 1]) for i in damaged]
    names = sorted(
        name
        for name, tensor in manifest.tensors.items()
        if any(s.file == file and s.begin < end and begin < s.end for s in tensor.shards for begin, end in ranges)
    )
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    where = ", ".join(f"[{begin}, {end})" for begin, end in ranges[:8])
    return f"{checkpoint / info.name}: checksum mismatch in bytes {where}, which hold {shown}"
