"""``bfloat16`` and the ``float8`` types for zarr-python, which has neither: data types over ``ml_dtypes``.

The names in metadata are those that tensorstore reads and writes. A type that zarr-python comes to have itself is left
alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import ml_dtypes
import numpy as np
from zarr.core.dtype.common import HasEndianness, HasItemSize
from zarr.dtype import DataTypeValidationError, ZDType, data_type_registry


@dataclass(frozen=True, kw_only=True)
class SmallFloat(ZDType[Any, Any], HasItemSize):
    """A floating-point type of ``ml_dtypes``; subclasses say which."""

    native: ClassVar[np.dtype[Any]]

    @classmethod
    def from_native_dtype(cls, dtype: Any) -> Self:
        if dtype == cls.native:
            return cls()
        raise DataTypeValidationError(f"{dtype} is not {cls._zarr_v3_name}")

    def to_native_dtype(self) -> Any:
        return self.native

    @property
    def item_size(self) -> int:
        return self.native.itemsize

    @classmethod
    def _from_json_v3(cls, data: object) -> Self:
        if data == cls._zarr_v3_name:
            return cls()
        raise DataTypeValidationError(f"{data!r} is not {cls._zarr_v3_name!r}")

    @classmethod
    def _from_json_v2(cls, data: object) -> Self:
        raise DataTypeValidationError(f"Zarr version 2 has no {cls._zarr_v3_name}")

    def to_json(self, zarr_format: int) -> Any:
        if zarr_format == 3:
            return self._zarr_v3_name
        raise ValueError(f"Zarr version {zarr_format} has no {self._zarr_v3_name}; use version 3")

    def _check_scalar(self, data: object) -> bool:
        return isinstance(data, (int, float, np.number, self.native.type))

    def cast_scalar(self, data: object) -> Any:
        if self._check_scalar(data):
            return self.native.type(data)
        raise TypeError(f"{data!r} is no {self._zarr_v3_name}, expected a real number")

    def default_scalar(self) -> Any:
        return self.native.type(0)

    def from_json_scalar(self, data: Any, *, zarr_format: int) -> Any:
        """A number, ``"NaN"``, ``"Infinity"``, ``"-Infinity"``, or the bits as ``"0x..."``."""
        if isinstance(data, str) and data.startswith("0x"):
            return np.frombuffer(bytes.fromhex(data[2:])[::-1], dtype=self.native)[0]
        return self.native.type(float(data))

    def to_json_scalar(self, data: object, *, zarr_format: int) -> Any:
        value = float(self.cast_scalar(data))
        if math.isnan(value):
            return "NaN"
        return value if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")


@dataclass(frozen=True, kw_only=True)
class BFloat16(SmallFloat, HasEndianness):
    """Two bytes: the metadata has to say which comes first."""

    dtype_cls = type(np.dtype(ml_dtypes.bfloat16))
    native = np.dtype(ml_dtypes.bfloat16)
    _zarr_v3_name = "bfloat16"

    def to_native_dtype(self) -> Any:
        if self.endianness == "big":  # ml_dtypes takes a byte order and then does not swap
            raise ValueError("big-endian bfloat16 cannot be read: ml_dtypes does not swap bytes")
        return self.native


@dataclass(frozen=True, kw_only=True)
class Float8E4M3FN(SmallFloat):
    """One byte: 4 bits of exponent, 3 of mantissa, no infinities."""

    native = np.dtype(ml_dtypes.float8_e4m3fn)
    dtype_cls = type(native)
    _zarr_v3_name = "float8_e4m3fn"


@dataclass(frozen=True, kw_only=True)
class Float8E5M2(SmallFloat):
    """One byte: 5 bits of exponent, 2 of mantissa."""

    native = np.dtype(ml_dtypes.float8_e5m2)
    dtype_cls = type(native)
    _zarr_v3_name = "float8_e5m2"


@dataclass(frozen=True, kw_only=True)
class Float8E4M3FNUZ(SmallFloat):
    """As :class:`Float8E4M3FN`, without a negative zero."""

    native = np.dtype(ml_dtypes.float8_e4m3fnuz)
    dtype_cls = type(native)
    _zarr_v3_name = "float8_e4m3fnuz"


@dataclass(frozen=True, kw_only=True)
class Float8E5M2FNUZ(SmallFloat):
    """As :class:`Float8E5M2`, without infinities and a negative zero."""

    native = np.dtype(ml_dtypes.float8_e5m2fnuz)
    dtype_cls = type(native)
    _zarr_v3_name = "float8_e5m2fnuz"


DATA_TYPES: tuple[type[SmallFloat], ...] = (BFloat16, Float8E4M3FN, Float8E5M2, Float8E4M3FNUZ, Float8E5M2FNUZ)


def register() -> None:
    """Make zarr-python read and write these types. Idempotent."""
    for cls in DATA_TYPES:
        if cls._zarr_v3_name not in data_type_registry.contents:
            data_type_registry.register(cls._zarr_v3_name, cls)
