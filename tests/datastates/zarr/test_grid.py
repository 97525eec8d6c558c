"""Chunk grids: chunks tile the tensor, stay below their target, and byte ranges find their elements."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datastates.zarr.grid import Grid, choose_chunk, choose_shard, covering_box
from oneflow_sbp import Box

shapes = st.lists(st.integers(0, 40), max_size=4).map(tuple)
filled = st.lists(st.integers(1, 9), max_size=4).map(tuple)


@settings(deadline=None)
@given(shapes, st.sampled_from([1, 2, 4, 16]), st.integers(1, 500))
def test_chunks_tile_the_tensor_and_stay_small(shape: tuple[int, ...], itemsize: int, target: int) -> None:
    grid = Grid(shape, choose_chunk(shape, itemsize, target))
    assert all(size >= 1 for size in grid.chunk)
    assert math.prod(grid.chunk) * itemsize <= max(target, itemsize)
    assert sum(grid.inner(index).numel for index in grid.indices()) == math.prod(shape)
    shard = choose_shard(shape, grid.chunk, itemsize, 8 * target)
    assert all(outer % inner == 0 for outer, inner in zip(shard, grid.chunk, strict=True))
    assert math.prod(shard) * itemsize <= max(8 * target, itemsize)


def test_chunks_are_whole_rows_that_stored_boxes_begin_with() -> None:
    assert choose_chunk((1000, 16), 4, 6400, row_step=250) == (50, 16)
    assert choose_chunk((1000, 16), 4, 1 << 20, row_step=250) == (250, 16)
    assert choose_chunk((1000, 16), 4, 6400, row_step=251) == (100, 16)  # prime: no cut of it is near 100 rows
    assert choose_chunk((3, 1000), 4, 400, row_step=1) == (1, 100)
    assert choose_chunk((), 4, 100) == ()


def test_files_hold_chunks_of_several_dims() -> None:
    assert choose_shard((64, 8, 100), (1, 4, 100), 4, 1600 * 8) == (4, 8, 100)
    assert choose_shard((100,), (100,), 4, 1) == (100,)


@settings(deadline=None)
@given(filled, st.data())
def test_a_byte_range_lies_in_the_box_that_covers_it(shape: tuple[int, ...], data: st.DataObject) -> None:
    count = math.prod(shape)
    begin = data.draw(st.integers(0, count - 1))
    end = data.draw(st.integers(begin + 1, count))
    values = torch.arange(count).reshape(shape)
    box, first = covering_box(Box.whole(shape), begin, end)
    flat = values[box.relative_to(Box.whole(shape))].reshape(-1)
    assert flat[first : first + end - begin].tolist() == list(range(begin, end))


@settings(deadline=None)
@given(filled, st.data())
def test_the_chunks_that_meet_a_box(shape: tuple[int, ...], data: st.DataObject) -> None:
    grid = Grid(shape, tuple(data.draw(st.integers(1, extent)) for extent in shape))
    ranges = [sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))) for n in shape]
    box = Box(tuple(a for a, _ in ranges), tuple(b - a for a, b in ranges))
    expected = [index for index in grid.indices() if grid.inner(index).intersect(box)]
    assert list(grid.meeting(box)) == expected
