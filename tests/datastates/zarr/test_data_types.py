"""The data types that zarr-python lacks: it writes what tensorstore reads, and reads what tensorstore writes."""

import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import torch
import zarr
from kinds import values_of
from zarr.dtype import DataTypeValidationError, data_type_registry, parse_dtype

from datastates.zarr.data_types import DATA_TYPES, BFloat16, SmallFloat, register

register()
pytestmark = pytest.mark.parametrize("cls", DATA_TYPES, ids=lambda cls: cls._zarr_v3_name)


def numbers(cls: type[SmallFloat]) -> np.ndarray:
    raw = values_of(torch.uint8, (12, 10), seed=3).numpy().reshape(-1)
    return raw.view(cls.native).reshape(-1, 5)


def tensorstore_at(path: Path, **options: Any) -> Any:
    return tensorstore.open({"driver": "zarr3", "kvstore": f"file://{path}/"}, **options).result()


def test_tensorstore_reads_what_zarr_python_writes(cls: type[SmallFloat], tmp_path: Path) -> None:
    values = numbers(cls)
    every_chunk = {"write_empty_chunks": True}  # else it compares NaNs with the fill value, and warns
    zarr.create_array(tmp_path / "a", data=values, chunks=(5, 2), shards=(10, 4), config=every_chunk)
    found = tensorstore_at(tmp_path / "a").read().result()
    assert (found.dtype, found.tobytes()) == (values.dtype, values.tobytes())
    again = zarr.open_array(tmp_path / "a", mode="r")[...]
    assert (again.dtype, again.tobytes()) == (values.dtype, values.tobytes())


def test_zarr_python_reads_what_tensorstore_writes(cls: type[SmallFloat], tmp_path: Path) -> None:
    values = numbers(cls)
    store = tensorstore_at(tmp_path / "a", create=True, dtype=cls._zarr_v3_name, shape=values.shape, fill_value=1)
    store.write(values).result()
    array = zarr.open_array(tmp_path / "a", mode="r")
    assert array[...].tobytes() == values.tobytes()
    assert array.fill_value == cls.native.type(1)


def test_the_registry_knows_it_once(cls: type[SmallFloat]) -> None:
    register()
    assert data_type_registry.get(cls._zarr_v3_name) is cls
    assert parse_dtype(cls.native, zarr_format=3) == cls()
    assert parse_dtype(cls._zarr_v3_name, zarr_format=3) == cls()
    assert pickle.loads(pickle.dumps(cls())) == cls()


def test_scalars_survive_json(cls: type[SmallFloat]) -> None:
    kind = cls()
    for value in (0.0, 1.5, float("nan"), float("inf"), float("-inf")):
        scalar = kind.cast_scalar(value)
        again = kind.from_json_scalar(kind.to_json_scalar(scalar, zarr_format=3), zarr_format=3)
        assert np.array_equal(np.float32(again), np.float32(scalar), equal_nan=True)
    assert kind.from_json_scalar("0x" + kind.cast_scalar(1).tobytes()[::-1].hex(), zarr_format=3) == 1
    with pytest.raises(TypeError, match=f"'x' is no {cls._zarr_v3_name}, expected a real number"):
        kind.cast_scalar("x")


def test_it_is_of_version_3(cls: type[SmallFloat]) -> None:
    with pytest.raises(ValueError, match=f"Zarr version 2 has no {cls._zarr_v3_name}"):
        cls().to_json(2)
    with pytest.raises(DataTypeValidationError):
        cls.from_json({"name": "<V2", "object_codec_id": None}, zarr_format=2)
    with pytest.raises(DataTypeValidationError):
        cls.from_native_dtype(np.dtype("f4"))


def test_swapped_bytes_are_refused_not_misread(cls: type[SmallFloat]) -> None:
    if cls is BFloat16:
        with pytest.raises(ValueError, match="big-endian bfloat16 cannot be read"):
            BFloat16(endianness="big").to_native_dtype()
    assert ml_dtypes.finfo(cls.native).bits == 8 * cls.native.itemsize
