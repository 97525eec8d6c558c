"""Any changes, in any order: what comes back is the state, and what was written is the least there could be."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from deltas import assert_holds, save
from hypothesis import given, settings
from hypothesis import strategies as st

from datastates import Checkpointer
from datastates.directory import read_manifest

EXTENT_BYTES = 4096
SIZES = {"a": 70_001, "b": 3, "c": 40_000, "d": 0, "e": 4095}
"""Bytes of the tensors; together 28 extents."""
ranges = st.tuples(st.sampled_from([n for n in SIZES if SIZES[n]]), st.integers(0, 70_000), st.integers(1, 9000))
runs = itertools.count()


def change(state: dict[str, torch.Tensor], name: str, begin: int, size: int) -> None:
    begin %= SIZES[name]
    state[name][begin : begin + size] += 1


def payload_of(checkpoint: Path, state: dict[str, torch.Tensor]) -> np.ndarray:
    """The bytes of the data file as they would be without holes."""
    manifest = read_manifest(checkpoint)
    (file,) = manifest.files
    payload = np.zeros(file.size_bytes, dtype=np.uint8)
    for name, info in manifest.tensors.items():
        payload[info.shards[0].begin : info.shards[0].end] = state[name].numpy()
    return payload


@pytest.mark.timeout(300)
@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(ranges, max_size=4), min_size=1, max_size=5), st.integers(2, 6))
def test_random_changes_come_back_and_cost_their_extents(
    tmp_path_factory: pytest.TempPathFactory, steps: list[list[tuple[str, int, int]]], full_every: int
) -> None:
    directory = tmp_path_factory.getbasetemp() / f"deltas-{next(runs)}"
    generator = torch.Generator().manual_seed(1)
    state = {
        name: torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator) for name, size in SIZES.items()
    }
    options = {"delta_extent_bytes": EXTENT_BYTES, "chunk_bytes": 16384, "keep_last": None, "full_every": full_every}
    with Checkpointer(directory, **options) as checkpoints:
        _, now = save(checkpoints, 0, state)
        path = directory / "step-00000000"
        kept, before, last_full = [now], payload_of(path, now), 0
        for step, changes in enumerate(steps, 1):
            for name, begin, size in changes:
                change(state, name, begin, size)
            deltas = checkpoints.stats().num_deltas
            written, now = save(checkpoints, step, state)
            path = directory / f"step-{step:08d}"
            kept.append(now)
            after = payload_of(path, now)
            if checkpoints.stats().num_deltas > deltas:
                header = read_manifest(path).files[0].header_bytes
                starts = range(header, len(after), EXTENT_BYTES)
                least = sum(
                    len(after[at : at + EXTENT_BYTES])
                    for at in starts
                    if (after[at : at + EXTENT_BYTES] != before[at : at + EXTENT_BYTES]).any()
                )
                assert written == header + least
                assert step - last_full < full_every
            else:
                assert written == len(after)
                last_full = step
            before = after
    for step, expected in enumerate(kept):
        assert_holds(directory / f"step-{step:08d}", expected)
