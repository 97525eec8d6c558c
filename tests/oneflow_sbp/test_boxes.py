"""Boxes against NumPy: an array whose values are its own flat indices says what every box means."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

from oneflow_sbp import Box, local_box

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def boxes_in(draw: st.DrawFn, shape: tuple[int, ...]) -> Box:
    ranges = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in shape]
    return Box(tuple(begin for begin, _ in ranges), tuple(end - begin for begin, end in ranges))


def slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(begin, begin + size) for begin, size in zip(box.offsets, box.sizes, strict=True))


def indices(shape: tuple[int, ...], box: Box) -> np.ndarray:
    return np.arange(int(np.prod(shape))).reshape(shape)[slices(box)]


@given(st.data(), shapes)
def test_intersection_holds_the_common_elements(data: st.DataObject, shape: tuple[int, ...]) -> None:
    a, b = data.draw(boxes_in(shape)), data.draw(boxes_in(shape))
    common = np.intersect1d(indices(shape, a), indices(shape, b))
    both = a.intersect(b)
    assert both == b.intersect(a)
    if both is None:
        assert common.size == 0
    else:
        assert both.numel == common.size > 0
        assert np.array_equal(np.sort(indices(shape, both), axis=None), common)


@given(st.data(), shapes)
def test_relative_slices_select_the_box_from_what_holds_the_outer_one(
    data: st.DataObject, shape: tuple[int, ...]
) -> None:
    outer, other = data.draw(boxes_in(shape)), data.draw(boxes_in(shape))
    inner = outer.intersect(other)
    if inner is not None:
        assert np.array_equal(indices(shape, outer)[inner.relative_to(outer)], indices(shape, inner))


@given(st.data(), shapes)
def test_flat_range_is_found_exactly_where_the_box_is_one_run(data: st.DataObject, shape: tuple[int, ...]) -> None:
    outer, other = data.draw(boxes_in(shape)), data.draw(boxes_in(shape))
    inner = outer.intersect(other)
    if inner is None:
        return
    order = np.arange(outer.numel).reshape(outer.sizes)[inner.relative_to(outer)].reshape(-1)
    one_run = bool(np.all(np.diff(order) == 1))
    run = inner.flat_range_in(outer)
    assert (run is not None) == one_run
    if run is not None:
        assert np.array_equal(np.arange(*run), order)


@given(st.data(), shapes)
def test_the_hull_is_the_smallest_box_around_that_is_one_run(data: st.DataObject, shape: tuple[int, ...]) -> None:
    outer, other = data.draw(boxes_in(shape)), data.draw(boxes_in(shape))
    inner = outer.intersect(other)
    if inner is None:
        return
    hull = inner.hull_in(outer)
    run = hull.flat_range_in(outer)
    assert run is not None
    assert hull.intersect(inner) == inner
    assert (hull == inner) == (inner.flat_range_in(outer) is not None)
    flat = indices(
        outer.sizes, Box(tuple(a - b for a, b in zip(inner.offsets, outer.offsets, strict=True)), inner.sizes)
    )
    row = math.prod(hull.sizes[next((d for d, n in enumerate(inner.sizes) if n != 1), len(shape)) + 1 :])
    assert flat.min() - run[0] < row
    assert run[1] - flat.max() <= row


@given(st.data(), shapes.filter(bool))
def test_rows_are_the_part_along_dim_0(data: st.DataObject, shape: tuple[int, ...]) -> None:
    box = data.draw(boxes_in(shape))
    begin, end = sorted((data.draw(st.integers(0, box.sizes[0])), data.draw(st.integers(0, box.sizes[0]))))
    rows = box.rows(begin, end)
    assert rows.inside(shape)
    assert np.array_equal(indices(shape, rows), indices(shape, box)[begin:end])


@given(shapes)
def test_the_whole_is_inside_and_holds_everything(shape: tuple[int, ...]) -> None:
    whole = Box.whole(shape)
    assert whole.inside(shape)
    assert whole.numel == int(np.prod(shape))
    assert whole.flat_range_in(whole) == (0, whole.numel) or whole.numel == 0


@pytest.mark.parametrize(
    "box",
    [
        Box((-1, 0), (1, 1)),
        Box((0, 0), (-1, 1)),
        Box((0, 3), (1, 2)),
        Box((2, 0), (2, 1)),
        Box((0,), (1,)),
        Box((0, 0, 0), (1, 1, 1)),
        Box((0, 0), (1,)),
    ],
)
def test_what_leaves_the_shape_is_not_inside(box: Box) -> None:
    assert not box.inside((3, 4))


def test_boxes_of_different_rank_do_not_intersect_silently() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        Box((0,), (1,)).intersect(Box((0, 0), (1, 1)))


def test_a_scalar_meets_itself() -> None:
    scalar = Box.whole(())
    assert scalar.numel == 1
    assert scalar.intersect(scalar) == scalar
    assert scalar.flat_range_in(scalar) == (0, 1)
    assert scalar.relative_to(scalar) == ()


def test_a_plain_tensor_is_its_own_whole() -> None:
    tensor = torch.zeros(2, 3)
    assert local_box(tensor) == (tensor, (2, 3), Box((0, 0), (2, 3)))


@pytest.fixture
def mesh_of_one(tmp_path: Path) -> Iterator[dist.DeviceMesh]:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture
def fake_mesh() -> Iterator[dist.DeviceMesh]:
    """Six ranks of which only this one, rank 4, exists: layouts need no communication."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=4, world_size=6)
    yield init_device_mesh("cpu", (2, 3), mesh_dim_names=("replicate", "shard"))
    dist.destroy_process_group()


def test_a_sharded_tensor_is_the_box_of_this_rank(fake_mesh: dist.DeviceMesh) -> None:
    from torch.distributed.tensor import DTensor

    # 7 rows over 3 ranks are 3, 3 and 1; rank 4 of the 2 x 3 mesh is the second along "shard"
    local = torch.zeros(3, 2)
    tensor = DTensor.from_local(
        local, fake_mesh, [Replicate(), Shard(0)], run_check=False, shape=torch.Size((7, 2)), stride=(2, 1)
    )
    found, shape, box = local_box(tensor)
    assert found.data_ptr() == local.data_ptr()
    assert (shape, box) == ((7, 2), Box((3, 0), (3, 2)))


def test_a_tensor_sharded_on_both_axes_is_cut_twice(fake_mesh: dist.DeviceMesh) -> None:
    from torch.distributed.tensor import DTensor

    tensor = DTensor.from_local(
        torch.zeros(2, 3), fake_mesh, [Shard(0), Shard(1)], run_check=False, shape=torch.Size((4, 9)), stride=(9, 1)
    )
    assert local_box(tensor)[1:] == ((4, 9), Box((2, 3), (2, 3)))


def test_an_empty_shard_lies_inside_the_tensor(fake_mesh: dist.DeviceMesh) -> None:
    from torch.distributed.tensor import DTensor

    tensor = DTensor.from_local(
        torch.zeros(0), fake_mesh, [Replicate(), Shard(0)], run_check=False, shape=torch.Size((1,)), stride=(1,)
    )
    _, shape, box = local_box(tensor)
    assert box.numel == 0
    assert box.inside(shape)


def test_a_partial_tensor_is_refused_with_the_remedy(mesh_of_one: dist.DeviceMesh) -> None:
    from torch.distributed.tensor import DTensor

    partial = DTensor.from_local(torch.zeros(2), mesh_of_one, [Partial()], run_check=False)
    with pytest.raises(ValueError, match=r"Partial.*redistribute it to Shard or Replicate"):
        local_box(partial)


def test_a_distributed_tensor_on_one_rank_is_whole(mesh_of_one: dist.DeviceMesh) -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    found, shape, box = local_box(distribute_tensor(whole, mesh_of_one, [Shard(0)]))
    assert torch.equal(found, whole)
    assert (shape, box) == ((2, 3), Box.whole((2, 3)))
