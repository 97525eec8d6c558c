"""A checkpoint as a Zarr store: every array bit for bit, and no byte read in vain."""

import asyncio
import math
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rank_files import write_ranks
from training import bits, small_model
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype

import datastates
from datastates import Checkpointer, DamagedCheckpointError, zarr_store
from datastates.manifest import Manifest, Shard, TensorInfo
from datastates.zarr.view import View
from oneflow_sbp import Box

T = TypeVar("T")
Saved = tuple[Path, dict[str, torch.Tensor]]
PROTOTYPE = default_buffer_prototype()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def found_bits(array: Any) -> bytes:
    return np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize("options", [{}, {"chunk_mb": 40e-6}, {"verify": False, "chunk_mb": 40e-6}])
def test_every_kind_is_one_array_of_its_global_shape(four_ranks: Saved, options: dict[str, Any]) -> None:
    directory, values = four_ranks
    group = zarr.open_group(zarr_store(directory, **options), mode="r")
    for name, value in values.items():
        array = group[name.replace(".", "/")]
        extra = (4,) if value.dtype == torch.complex32 else ()
        assert array.shape == (*value.shape, *extra)
        assert array.attrs["elastates"] == {"name": name, "dtype": str(value.dtype).removeprefix("torch.")}
        assert found_bits(array[...]) == bits(value), name


def test_attributes_hold_the_rest(four_ranks: Saved) -> None:
    directory, values = four_ranks
    group = zarr.open_group(zarr_store(directory), mode="r")
    about = group.attrs["elastates"]
    assert (about["step"], about["num_ranks"], about["metadata"]) == (7, 4, {"run": "test"})
    assert group.attrs["python"] == {"epoch": 0, "pair": {"$": "tuple", "v": [1, 2]}}
    assert group["kinds/tied"].attrs["elastates"]["tied_to"] == "kinds.float32"
    assert found_bits(group["kinds/tied"][...]) == bits(values["kinds.float32"])
    assert group["shapes/deep"].metadata.dimension_names == ("deep_0", "deep_1", "deep_2", "deep_3")
    assert sorted(name for name, _ in group["shapes"].members()) == ["deep", "empty", "hollow", "line", "scalar"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_selection_is_numpys(four_ranks: Saved, data: st.DataObject) -> None:
    directory, values = four_ranks
    value = values["shapes.deep"].numpy()
    array = zarr.open_group(zarr_store(directory, chunk_mb=30e-6, cache_mb=100e-6), mode="r")["shapes/deep"]
    selection = []
    for extent in value.shape:
        begin, end = sorted((data.draw(st.integers(0, extent)), data.draw(st.integers(0, extent))))
        selection.append(slice(begin, end))
    assert found_bits(array[tuple(selection)]) == found_bits(value[tuple(selection)])


ROWS, ROW_BYTES = 1000, 400


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tensor of 1000 rows of 400 bytes over two ranks, an extent every 4096 bytes of the file."""
    values = {"t": torch.arange(ROWS * 100.0).reshape(ROWS, 100)}
    return write_ranks(tmp_path_factory.mktemp("runs"), values, {"t": (0, [0, 300])}, [{}, {}], chunk_bytes=4096)


def test_a_row_costs_the_extents_that_hold_its_chunk(table: Path) -> None:
    store = zarr_store(table, chunk_mb=20 * ROW_BYTES / 1e6)
    array = zarr.open_group(store, mode="r")["t"]
    assert array.chunks == (20, 100)
    assert store.bytes_read == 0
    assert array[0, 0] == 0
    assert store.bytes_read == 2 * 4096  # 20 rows of 400 bytes, from the first byte of an extent
    assert array[19, 99] == 1999
    assert store.bytes_read == 2 * 4096


def test_reading_chunk_by_chunk_reads_every_byte_once(table: Path) -> None:
    store = zarr_store(table, chunk_mb=20 * ROW_BYTES / 1e6)
    array = zarr.open_group(store, mode="r")["t"]
    for begin in range(0, ROWS, 20):
        assert array[begin : begin + 20][:, 0].tolist() == [100.0 * row for row in range(begin, begin + 20)]
    assert store.bytes_read == ROWS * ROW_BYTES
    assert array[...].shape == (ROWS, 100)
    assert store.bytes_read == ROWS * ROW_BYTES


def test_the_cache_keeps_its_bound(table: Path) -> None:
    store = zarr_store(table, chunk_mb=20 * ROW_BYTES / 1e6, cache_mb=4 * 4096 / 1e6)
    array = zarr.open_group(store, mode="r")["t"]
    assert array[-1, -1] == array[...][-1, -1]
    assert store._boxes._bytes <= 4 * 4096
    before = store.bytes_read
    assert array[1, 0] == 100
    assert store.bytes_read == before + 2 * 4096


@pytest.mark.parametrize(
    ("wanted", "expected", "extents"),
    [
        (RangeByteRequest(0, 8), slice(0, 8), 1),
        (RangeByteRequest(4095, 4097), slice(4095, 4097), 2),
        (RangeByteRequest(4097, 4103), slice(4097, 4103), 1),
        (RangeByteRequest(7999, 99999), slice(7999, 8000), 1),
        (OffsetByteRequest(7996), slice(7996, None), 1),
        (SuffixByteRequest(4), slice(-4, None), 1),
        (RangeByteRequest(5, 5), slice(5, 5), 0),
    ],
)
def test_a_range_costs_the_extents_that_hold_it(table: Path, wanted: Any, expected: slice, extents: int) -> None:
    store = zarr_store(table, chunk_mb=20 * ROW_BYTES / 1e6)
    whole = np.arange(2000, dtype=np.float32).tobytes()
    found = run(store.get("t/c/0/0", PROTOTYPE, wanted))
    assert found is not None
    assert found.to_bytes() == whole[expected]
    assert store.bytes_read == extents * 4096


def test_a_chunk_over_two_files_and_the_end(table: Path) -> None:
    store = zarr_store(table, chunk_mb=0.2)
    array = zarr.open_group(store, mode="r")["t"]
    assert array.chunks == (300, 100)  # as the stored boxes begin
    last = run(store.get("t/c/3/0", PROTOTYPE))
    assert last is not None
    values = np.frombuffer(last.to_bytes(), dtype=np.float32)
    assert values[:10000].tolist() == list(range(90000, 100000))
    assert not values[10000:].any()
    assert run(store.getsize("t/c/3/0")) == len(last) == 300 * ROW_BYTES
    odd = zarr.open_group(zarr_store(table, chunk_mb=170 * ROW_BYTES / 1e6), mode="r")["t"]
    assert (odd.chunks, float(odd[299:301].sum())) == ((150, 100), sum(range(29900, 30100)))


def test_a_flipped_bit_is_named_where_it_is_read(table: Path, tmp_path: Path) -> None:
    path = tmp_path / table.name
    path.mkdir()
    for file in table.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    content = bytearray((path / "rank-00000.safetensors").read_bytes())
    content[4096 + 5000] ^= 1
    (path / "rank-00000.safetensors").write_bytes(content)
    array = zarr.open_group(zarr_store(path, chunk_mb=0.002), mode="r")["t"]
    assert array[25, 0] == 2500
    for _ in range(2):
        with pytest.raises(DamagedCheckpointError, match=r"rank-00000.safetensors: checksum mismatch .* which hold t"):
            array[12]
    trusted = zarr.open_group(zarr_store(path, verify=False), mode="r")["t"]
    assert trusted[12].shape == (100,)


def test_many_arrays_are_not_consolidated_and_still_found(tmp_path: Path) -> None:
    values = {f"many.t{i}": torch.tensor([float(i)]) for i in range(1100)}
    store = zarr_store(write_ranks(tmp_path, values, {}, [{}]))
    group = zarr.open_group(store, mode="r")
    assert group.metadata.consolidated_metadata is None
    assert group["many/t777"][0] == 777
    assert sum(1 for _ in group["many"].array_keys()) == 1100


def test_what_a_checkpointer_wrote(tmp_path: Path) -> None:
    model = small_model()
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(3, {"model": model, "lr": 0.5}).durable.result(60)
    group = zarr.open_group(zarr_store(tmp_path), mode="r")
    for name, value in model.state_dict().items():
        assert found_bits(group[f"model/{name.replace('.', '/')}"][...]) == bits(value)
    assert group.attrs["python"]["lr"] == 0.5


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "datastates.zarr.store")
    monkeypatch.setitem(sys.modules, "zarr.abc.store", None)
    with pytest.raises(ImportError, match=r"pip install 'elastates\[zarr\]'"):
        datastates.zarr_store(tmp_path)


def test_keys_are_made_as_they_are_asked_for() -> None:
    shape = (1 << 30, 1 << 10)
    info = TensorInfo("float32", shape, (Shard(0, 0, math.prod(shape) * 4, Box.whole(shape)),))
    view = View(Manifest(0, 1, {"huge": info}, (), ()), {}, 4_000_000)
    keys = view.keys_below("huge")
    assert [next(keys) for _ in range(2)] == ["huge/zarr.json", "huge/c/0/0"]
    assert view.chunk("huge/c/1000000/0") is not None
    assert view.chunk("huge/c/2000000/0") is None
