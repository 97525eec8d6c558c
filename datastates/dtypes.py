"""Names of element types: in the manifest (torch's), in safetensors headers, and their sizes."""

from __future__ import annotations

import torch

SAFETENSORS_NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
"""Element types that safetensors readers know; every other one is stored as bytes (``U8``, one more dim)."""

_BY_NAME: dict[str, torch.dtype] = {
    str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)
}


_NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in _BY_NAME.values()}


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.float32`` -> ``"float32"``."""
    return _NAMES[dtype]


def dtype_of(name: str) -> torch.dtype:
    """The dtype of a manifest's name.

    Raises:
        ValueError: this torch has no such dtype.
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        raise ValueError(f"dtype {name!r} is unknown to torch {torch.__version__}") from None
