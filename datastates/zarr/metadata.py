"""``zarr.json`` documents of Zarr version 3, as dicts. Pure functions.

Element types have the names that tensorstore gives them. Those that Zarr has no name for (``complex32``) are arrays of
``uint8`` with one more dim of the element's size, as in the checkpoint's own files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from datastates.dtypes import dtype_of
from datastates.manifest import TensorInfo

Json = dict[str, Any]
ZARR_NAMES: dict[torch.dtype, str] = {
    dtype: str(dtype).removeprefix("torch.")
    for dtype in (
        torch.bool,
        *(torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
        *(torch.complex64, torch.complex128),
    )
}
"""Element types that Zarr readers know by name."""
CONSOLIDATED_NODES = 1000
"""Up to so many nodes, the root's ``zarr.json`` holds the metadata of all: beyond, opening it would cost seconds."""


def extra_dims(dtype: str) -> tuple[int, ...]:
    """The dims that an array has behind the tensor's: one, of the element's size, if Zarr lacks the element type."""
    known = dtype_of(dtype)
    return () if known in ZARR_NAMES else (known.itemsize,)


def array_document(
    path: str, info: TensorInfo, chunk: Sequence[int], codecs: Sequence[Json], attributes: Mapping[str, Any]
) -> Json:
    """The ``zarr.json`` of an array.

    Args:
        path: of the node; its last part names the dims, each array its own, so that xarray takes any group.
        info: element type and shape of the tensor.
        chunk: of the chunk grid, in elements.
        codecs: from elements to bytes.
        attributes: the array's.
    """
    dtype = dtype_of(info.dtype)
    extra = extra_dims(info.dtype)
    leaf = path.rpartition("/")[2]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [*info.shape, *extra],
        "data_type": ZARR_NAMES.get(dtype, "uint8"),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [*chunk, *extra]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": _zero(dtype),
        "codecs": list(codecs),
        "dimension_names": [f"{leaf}_{dim}" for dim in range(len(info.shape) + len(extra))],
        "attributes": dict(attributes),
    }


def bytes_codec(dtype: str) -> Json:
    """Little-endian, said only where an element has several bytes."""
    known = dtype_of(dtype)
    if known not in ZARR_NAMES or known.itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


def group_document(attributes: Mapping[str, Any], below: Mapping[str, Json] | None = None) -> Json:
    """The ``zarr.json`` of a group; ``below`` (path -> document) is kept in it as consolidated metadata."""
    document: Json = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    if below is not None and len(below) <= CONSOLIDATED_NODES:
        together = dict(sorted(below.items(), key=lambda item: item[0].rpartition("/")[::2]))  # zarr-python: by parent
        document["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": together}
    return document


def document_bytes(document: Json) -> bytes:
    """As it stands in a file."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def chunk_key(path: str, index: Sequence[int], dtype: str) -> str:
    """The key of a chunk of the array at ``path``."""
    return "/".join([path, "c", *map(str, index), *("0" for _ in extra_dims(dtype))])


def _zero(dtype: torch.dtype) -> Any:
    if dtype.is_complex and dtype in ZARR_NAMES:
        return [0.0, 0.0]
    if dtype == torch.bool:
        return False
    return 0.0 if dtype.is_floating_point and dtype in ZARR_NAMES else 0
