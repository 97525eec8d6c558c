"""Loading: whatever the stored boxes and whatever the box that is wanted, every element arrives, and nothing else."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from training import assert_same_bits

from datastates import DamagedCheckpointError
from datastates.loading import LoadPlan, Target, load, plan_load
from datastates.manifest import DataFile, Manifest, Shard, TensorInfo
from oneflow_sbp import Box

import _elastates

SHAPE = (7, 5, 3)


def grid(cuts: list[list[int]]) -> list[Box]:
    """The boxes between cuts along every dim."""
    boxes = [Box((), ())]
    for ends in cuts:
        bounds = [0, *ends]
        boxes = [
            Box((*box.offsets, a), (*box.sizes, b - a)) for box in boxes for a, b in zip(bounds[:-1], ends, strict=True)
        ]
    return boxes


def write(directory: Path, values: torch.Tensor, boxes: list[Box], num_files: int) -> Manifest:
    """A checkpoint of one tensor, its boxes dealt out to files, one extent per box."""
    shape = tuple(values.shape)
    contents = [bytearray(4096) for _ in range(num_files)]
    ends: list[list[int]] = [[] for _ in range(num_files)]
    shards = []
    for i, box in enumerate(boxes):
        file = i % num_files
        begin = len(contents[file])
        contents[file] += values[box.relative_to(Box.whole(shape))].contiguous().numpy().tobytes()
        ends[file].append(len(contents[file]))
        shards.append(Shard(file, begin, ends[file][-1], box))
    files = []
    for number, (content, extent_ends) in enumerate(zip(contents, ends, strict=True)):
        (directory / str(number)).write_bytes(content)
        bounds = [4096, *extent_ends]
        crcs = [_elastates.crc32c(content[a:b]) for a, b in zip(bounds[:-1], extent_ends, strict=True)]
        files.append(
            DataFile(
                str(number),
                len(content),
                4096,
                0,
                np.array(extent_ends, dtype=np.uint64),
                np.array(crcs, dtype=np.uint32),
            )
        )
    return Manifest(0, num_files, {"t": TensorInfo("float32", shape, tuple(shards))}, tuple(files), ())


def cuts_of(length: int) -> st.SearchStrategy[list[int]]:
    return st.sets(st.integers(1, length - 1), max_size=3).map(lambda cuts: [*sorted(cuts), length])


@st.composite
def boxes_in(draw: st.DrawFn) -> Box:
    ranges = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in SHAPE]
    return Box(tuple(a for a, _ in ranges), tuple(b - a for a, b in ranges))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.tuples(*map(cuts_of, SHAPE)), st.lists(boxes_in(), min_size=1, max_size=3), st.integers(1, 3), st.booleans())
def test_any_box_comes_from_any_boxes(
    tmp_path: Path, cuts: tuple[list[int], ...], wanted: list[Box], num_files: int, strided: bool
) -> None:
    values = torch.arange(math.prod(SHAPE), dtype=torch.float32).reshape(SHAPE)
    manifest = write(tmp_path, values, grid(list(cuts)), num_files)
    targets = []
    for box in wanted:
        storage = torch.full((*box.sizes[:-1], 2 * box.sizes[-1]) if strided else box.sizes, -1.0)
        targets.append(Target("t", storage[..., ::2] if strided else storage, box))
    load(tmp_path, manifest, plan_load(manifest.tensors, targets), threads=2, direct_io=False)
    for target in targets:
        assert_same_bits(target.tensor.contiguous(), values[target.box.relative_to(Box.whole(SHAPE))].contiguous())
        base = target.tensor._base
        assert base is None or not strided or bool((base[..., 1::2] == -1).all())


def runs(plan: LoadPlan) -> int:
    return sum(run.end - run.begin for run in plan.runs)


def test_only_the_rows_that_are_wanted_are_read(tmp_path: Path) -> None:
    manifest = write(tmp_path, torch.zeros(SHAPE), [Box.whole(SHAPE)], 1)
    target = Target("t", torch.zeros(2, 5, 3), Box((3, 0, 0), (2, 5, 3)))
    plan = plan_load(manifest.tensors, [target])
    assert (len(plan.runs), len(plan.patches), runs(plan)) == (1, 0, 2 * 15 * 4)


@pytest.mark.parametrize("of_shape", [(6, 1024), (3, 4, 512), (2, 3, 2, 300)])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_rows_of_some_length_need_no_buffer(tmp_path: Path, of_shape: tuple[int, ...], data: st.DataObject) -> None:
    values = torch.arange(math.prod(of_shape), dtype=torch.float32).reshape(of_shape)
    stored = grid([data.draw(st.sampled_from([[n], sorted({n // 2, n})])) for n in of_shape])
    manifest = write(tmp_path, values, stored, 2)
    begin, end = data.draw(st.sampled_from([(0, 200), (37, 300), (128, 256)]))
    outer = [sorted(data.draw(st.tuples(st.integers(0, n - 1), st.integers(1, n)))) for n in of_shape[:-1]]
    outer = [(a, max(b, a + 1)) for a, b in outer]
    box = Box((*(a for a, _ in outer), begin), (*(b - a for a, b in outer), end - begin))
    target = Target("t", torch.full(box.sizes, -1.0), box)
    plan = plan_load(manifest.tensors, [target])
    load(tmp_path, manifest, plan, threads=2, direct_io=False)
    expected = values[box.relative_to(Box.whole(of_shape))].contiguous()
    assert_same_bits(target.tensor, expected)
    patched = plan_load(manifest.tensors, [target._replace(tensor=torch.full(box.sizes, -1.0))], in_rows=False)
    load(tmp_path, manifest, patched, threads=2, direct_io=False)
    assert not patched.rows
    assert len(plan.patches) <= len(patched.patches)
    if len(stored) == 1 and box.numel > end - begin:
        assert plan.rows
        assert not plan.patches


def test_damage_names_file_range_and_tensor(tmp_path: Path) -> None:
    manifest = write(tmp_path, torch.ones(SHAPE), grid([[3, 7], [5], [3]]), 1)
    content = bytearray((tmp_path / "0").read_bytes())
    content[4096 + 3 * 15 * 4 + 1] ^= 1
    (tmp_path / "0").write_bytes(content)
    first, second = Box((0, 0, 0), (3, 5, 3)), Box((3, 0, 0), (4, 5, 3))
    whole = plan_load(manifest.tensors, [Target("t", torch.zeros(SHAPE), Box.whole(SHAPE))])
    with pytest.raises(DamagedCheckpointError, match=r"/0: checksum mismatch in bytes \[4276, 4516\), which hold t$"):
        load(tmp_path, manifest, whole, threads=1, direct_io=False)
    spared = Target("t", torch.zeros(first.sizes), first)
    load(tmp_path, manifest, plan_load(manifest.tensors, [spared]), threads=1, direct_io=False)
    assert bool((spared.tensor == 1).all())
    hit = plan_load(manifest.tensors, [Target("t", torch.zeros(second.sizes), second)])
    with pytest.raises(DamagedCheckpointError, match="checksum mismatch"):
        load(tmp_path, manifest, hit, threads=1, direct_io=False)


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    manifest = write(tmp_path, torch.ones(SHAPE), [Box.whole(SHAPE)], 1)
    (tmp_path / "0").unlink()
    plan = plan_load(manifest.tensors, [Target("t", torch.zeros(SHAPE), Box.whole(SHAPE))])
    with pytest.raises(DamagedCheckpointError, match=r"/0: .*No such file"):
        load(tmp_path, manifest, plan, threads=1, direct_io=True)
