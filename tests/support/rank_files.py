"""Checkpoints as several ranks write them, written by one process: no process group, no engine, the same plans."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datastates import manifest
from datastates.agreement import make_save_plan
from datastates.directory import data_file_name, objects_file_name, step_name
from datastates.dtypes import dtype_name
from datastates.plan import Held
from oneflow_sbp import Box

import _elastates

Cut = tuple[int, list[int]]
"""(dim, where the parts begin, the first at 0): one part for every rank; parts may be empty."""


def even(shape: Sequence[int], dim: int, num_ranks: int) -> Cut:
    """The cut that ``Shard(dim)`` makes."""
    each = -(-shape[dim] // num_ranks)
    return dim, [min(rank * each, shape[dim]) for rank in range(num_ranks)]


def write_ranks(
    directory: Path,
    values: Mapping[str, torch.Tensor],
    cuts: Mapping[str, Cut],
    python: Sequence[Mapping[str, Any]],
    *,
    step: int = 7,
    aliases: Mapping[str, str] | None = None,
    chunk_bytes: int = 1 << 20,
) -> Path:
    """Write the checkpoint of ``len(python)`` ranks; tensors without a cut are held by all of them."""
    held = [
        [
            Held(name, dtype_name(v.dtype), v.itemsize, tuple(v.shape), part_of(v, cuts.get(name), rank), 0)
            for name, v in values.items()
        ]
        for rank in range(len(python))
    ]
    plan = make_save_plan(held, dict(aliases or {}), [frozenset()] * len(held), chunk_bytes)
    path = directory / step_name(step)
    path.mkdir(parents=True)
    files, objects = [], []
    for rank, file in enumerate(plan.files):
        content = file.header
        for stored in file.stored:
            value = values[held[rank][stored.piece.index].name]
            content += row_major(value[stored.piece.box.relative_to(Box.whole(tuple(value.shape)))])
        assert len(content) == file.size_bytes
        (path / data_file_name(rank)).write_bytes(content)
        bounds = [len(file.header), *file.extent_ends.tolist()]
        crcs = [_elastates.crc32c(content[a:b]) for a, b in itertools.pairwise(bounds)]
        files.append(
            manifest.DataFile(
                data_file_name(rank),
                len(content),
                len(file.header),
                _elastates.crc32c(file.header),
                file.extent_ends,
                np.array(crcs, dtype=np.uint32),
            )
        )
        text = json.dumps(python[rank]).encode()
        (path / objects_file_name(rank)).write_bytes(text)
        objects.append(manifest.ObjectsFile(objects_file_name(rank), len(text), _elastates.crc32c(text)))
    found = manifest.Manifest(
        step, len(held), plan.tensors, tuple(files), tuple(objects), plan.aliases, {"run": "test"}, 1.5
    )
    (path / manifest.FILE_NAME).write_bytes(manifest.dump(found))
    return path


def row_major(value: torch.Tensor) -> bytes:
    """The bytes of the values."""
    host = value.clone(memory_format=torch.contiguous_format).reshape(-1)
    return host.view(torch.uint8).numpy().tobytes() if host.numel() else b""


def part_of(value: torch.Tensor, cut: Cut | None, rank: int) -> Box:
    """What ``rank`` holds of a tensor."""
    whole = Box.whole(tuple(value.shape))
    if cut is None:
        return whole
    dim, begins = cut
    ends = [*begins[1:], value.shape[dim]]
    offsets, sizes = list(whole.offsets), list(whole.sizes)
    offsets[dim], sizes[dim] = begins[rank], ends[rank] - begins[rank]
    return Box(tuple(offsets), tuple(sizes))
