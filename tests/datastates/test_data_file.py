"""The layout of a data file: what safetensors demands, what direct I/O demands, and what the checksums demand."""

import itertools
import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import deserialize

from datastates.data_file import BLOCK_BYTES, LARGE_BYTES, SHARED_EXTENT_BYTES, DataFilePlan, plan_data_file
from datastates.dtypes import SAFETENSORS_NAMES, dtype_name
from datastates.plan import Held, Piece
from oneflow_sbp import Box

CHUNK_BYTES = 1 << 20
TORCH_ONLY = [torch.complex64, torch.complex128, torch.float8_e5m2fnuz, torch.float4_e2m1fn_x2]


def held(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, group: int = 0) -> Held:
    return Held(name, dtype_name(dtype), dtype.itemsize, shape, Box.whole(shape), group)


def plan_all(tensors: list[Held], chunk_bytes: int = CHUNK_BYTES) -> DataFilePlan:
    """The plan of a rank that writes all it holds."""
    return plan_data_file(tensors, [Piece(i, h.name, h.box) for i, h in enumerate(tensors)], chunk_bytes)


def header_of(plan: DataFilePlan) -> dict[str, dict]:
    (length,) = struct.unpack("<Q", plan.header[:8])
    assert length == len(plan.header) - 8
    return json.loads(plan.header[8:])


def extents_of(plan: DataFilePlan) -> list[tuple[int, int]]:
    ends = plan.extent_ends.tolist()
    return list(itertools.pairwise([len(plan.header), *ends]))


tensors_lists = st.lists(
    st.tuples(
        st.lists(st.integers(0, 200), max_size=2).map(tuple),
        st.sampled_from([*SAFETENSORS_NAMES, *TORCH_ONLY]),
        st.integers(-1, 2),
    ),
    max_size=12,
).map(lambda specs: [held(f"t{i}", *spec) for i, spec in enumerate(specs)])


@given(tensors_lists)
def test_the_file_parses_with_the_real_safetensors(tensors: list[Held]) -> None:
    plan = plan_all(tensors)
    found = dict(deserialize(plan.header + bytes(plan.size_bytes - len(plan.header))))
    assert set(found) == {tensor.name for tensor in tensors}
    for tensor in tensors:
        dtype = next(d for d in [*SAFETENSORS_NAMES, *TORCH_ONLY] if dtype_name(d) == tensor.dtype)
        as_bytes = dtype not in SAFETENSORS_NAMES
        assert found[tensor.name]["dtype"] == ("U8" if as_bytes else SAFETENSORS_NAMES[dtype])
        expected = [*tensor.shape, tensor.itemsize_bytes] if as_bytes else list(tensor.shape)
        assert found[tensor.name]["shape"] == expected


@given(tensors_lists)
def test_the_payload_begins_on_a_block_and_pieces_tile_it(tensors: list[Held]) -> None:
    plan = plan_all(tensors)
    assert len(plan.header) % BLOCK_BYTES == 0
    at = len(plan.header)
    for stored in plan.stored:
        assert stored.begin == at
        assert stored.end - stored.begin == tensors[stored.piece.index].nbytes
        at = stored.end
    assert at == plan.size_bytes
    assert plan.begins.tolist() == [stored.begin for stored in plan.stored]
    assert plan.sizes.tolist() == [stored.end - stored.begin for stored in plan.stored]


@given(tensors_lists)
def test_every_entry_that_readers_map_is_aligned_to_its_elements(tensors: list[Held]) -> None:
    plan = plan_all(tensors)
    entries = header_of(plan)
    for stored in plan.stored:
        if entries[stored.piece.name]["dtype"] != "U8":
            assert stored.begin % tensors[stored.piece.index].itemsize_bytes == 0


@given(tensors_lists, st.integers(1, 16))
def test_extents_tile_the_payload_and_stay_within_chunks(tensors: list[Held], blocks: int) -> None:
    chunk_bytes = blocks * BLOCK_BYTES
    plan = plan_all(tensors, chunk_bytes)
    at = len(plan.header)
    for begin, end in extents_of(plan):
        assert begin == at < end
        assert begin // chunk_bytes == (end - 1) // chunk_bytes
        at = end
    assert at == plan.size_bytes
    assert plan.extent_ends.dtype == np.uint64


def test_a_large_tensor_shares_no_extent_with_its_neighbours() -> None:
    small, large = LARGE_BYTES // 4 - 1, LARGE_BYTES // 4
    plan = plan_all([held("a", (small,)), held("b", (large,)), held("c", (small,)), held("d", (7,))])
    of = {stored.piece.name: (stored.begin, stored.end) for stored in plan.stored}
    extents = extents_of(plan)
    meets_large = [e for e in extents if e[0] < of["b"][1] and of["b"][0] < e[1]]
    assert meets_large[0][0] == of["b"][0]
    assert meets_large[-1][1] == of["b"][1]
    assert any(begin <= of["c"][0] and of["d"][1] <= end for begin, end in extents), "small neighbours share one"


def test_small_neighbours_share_extents_of_bounded_size_and_none_is_torn() -> None:
    sizes = [(17_000 + 1000 * (i % 7),) for i in range(240)]
    plan = plan_all([held(f"t{i}", size) for i, size in enumerate(sizes)], 8 << 20)
    extents = extents_of(plan)
    assert len(extents) > 4
    assert all(end - begin < SHARED_EXTENT_BYTES + LARGE_BYTES for begin, end in extents)
    torn = [end for _, end in extents for s in plan.stored if s.begin < end < s.end]
    assert all(end % (8 << 20) == 0 for end in torn)


def test_a_header_longer_than_a_chunk_still_leaves_whole_extents() -> None:
    plan = plan_all([held(f"a_long_name_for_a_small_tensor_{i:06d}", (3,)) for i in range(200)], BLOCK_BYTES)
    assert len(plan.header) > BLOCK_BYTES
    assert sum(end - begin for begin, end in extents_of(plan)) == plan.size_bytes - len(plan.header) == 200 * 12


def test_boxes_are_told_to_stock_readers() -> None:
    tensor = held("w", (10, 4))
    plan = plan_data_file([tensor], [Piece(0, "w", Box((6, 0), (2, 4)))], CHUNK_BYTES)
    metadata = header_of(plan)["__metadata__"]
    assert metadata["format"] == "pt"
    assert metadata["DCP_VERSION"] == "1.0"
    assert json.loads(metadata["DCP_SHARDING_INFO"]) == {"w": {"saved_offsets": [6, 0]}}
    assert header_of(plan)["w"]["shape"] == [2, 4]
    assert plan.source_begin.tolist() == [6 * 4 * 4]


def test_bytes_of_unknown_types_have_offsets_of_their_own_dim() -> None:
    tensor = held("z", (10, 4), torch.complex64)
    plan = plan_data_file([tensor], [Piece(0, "z", Box((6, 0), (2, 4)))], CHUNK_BYTES)
    info = json.loads(header_of(plan)["__metadata__"]["DCP_SHARDING_INFO"])
    assert info == {"z": {"saved_offsets": [6, 0, 0]}}
    assert header_of(plan)["z"] == {"dtype": "U8", "shape": [2, 4, 8], "data_offsets": [0, 64]}


def test_the_source_of_a_piece_counts_from_the_box_that_is_held() -> None:
    tensor = Held("w", "float32", 4, (10, 4), Box((5, 0), (5, 4)), 0)
    plan = plan_data_file([tensor], [Piece(0, "w", Box((7, 0), (3, 4)))], CHUNK_BYTES)
    assert plan.source_begin.tolist() == [2 * 4 * 4]


def test_a_rank_that_writes_nothing_has_a_valid_file() -> None:
    plan = plan_all([])
    assert plan.size_bytes == len(plan.header) == BLOCK_BYTES
    assert plan.extent_ends.tolist() == []
    assert deserialize(plan.header) == []


def test_what_one_optimizer_writes_lies_together() -> None:
    plan = plan_all([held("a", (3,), group=1), held("b", (3,), group=0), held("c", (3,), group=1)])
    assert [stored.piece.name for stored in plan.stored] == ["b", "a", "c"]


@pytest.mark.parametrize("name", ["__metadata__"])
def test_a_name_that_the_header_needs_itself_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"__metadata__.*rename"):
        plan_all([held(name, (3,))])
