"""Python state as typed JSON: values come back with the types they had, and nothing is ever executed.

JSON has no tuples, bytes, non-string keys, NaN or arrays; those become ``{"$": kind, ...}``. Tensors inside are handed
to a callback, which stores them beside the JSON. ``docs/format.md`` lists the kinds.
"""

from __future__ import annotations

import base64
import collections
import datetime
import enum
import io
import math
import pathlib
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

from datastates import quantized
from datastates.dtypes import dtype_name, dtype_of
from datastates.errors import DamagedCheckpointError

Json = Any
T = TypeVar("T")
TensorOut = Callable[[str, torch.Tensor], str | None]
"""(path inside the value, tensor) -> the stored tensor's name; ``None``: it is to be stored inline."""
TensorIn = Callable[[str], torch.Tensor]
LARGE_BYTES = 256 << 10
"""NumPy arrays from this size on are stored as tensors where there is a place for those; smaller ones inline."""
PLAIN_TYPES: tuple[type, ...] = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    bytearray,
    list,
    tuple,
    set,
    frozenset,
    collections.deque,
    datetime.datetime,
    enum.Enum,
    pathlib.PurePath,
    np.ndarray,
    np.generic,
    torch.dtype,
    torch.device,
)
"""What :func:`encode` takes, apart from dicts, tensors and :class:`Pickled`."""


class Pickled:
    """Marks a value that is to be stored with pickle: loading it can run code, so it is never the default."""

    def __init__(self, value: object) -> None:
        self.value = value


def pickled(value: object) -> Pickled:
    """Ask for pickle by name, for a value whose type typed JSON does not know."""
    return Pickled(value)


_AS_THEY_ARE = frozenset((type(None), bool, int, str))


def encode(value: Any, path: str, tensor_out: TensorOut | None = None) -> Json:
    """The JSON form of ``value``, sharing nothing mutable with it.

    Args:
        value: any nesting of the types listed in ``docs/format.md``.
        path: the value's name, for messages and for tensors inside.
        tensor_out: what to do with tensors; without it they are stored inline.

    Raises:
        TypeError: a type that has no JSON form; the message names the path and the remedy.
    """
    kind_of_value = type(value)
    if kind_of_value in _AS_THEY_ARE:
        return value
    if isinstance(value, torch.Tensor):  # early: states of tens of thousands of small ones are common
        if value.is_quantized:
            return _quantized(value, path, tensor_out)
        if tensor_out is not None and (name := tensor_out(path, value)) is not None:
            return {"$": "tensor", "name": name}
        return _inline_tensor(value)
    if kind_of_value is float:
        return value if math.isfinite(value) else {"$": "float", "v": repr(value)}
    if kind_of_value is list:
        return [encode(item, f"{path}.{i}", tensor_out) for i, item in enumerate(value)]
    if kind_of_value is dict and all(type(key) is str for key in value) and "$" not in value:
        return {key: encode(item, f"{path}.{key}", tensor_out) for key, item in value.items()}
    for kind, cls, to_json in _ENCODERS:
        if kind_of_value is cls:
            return {"$": kind, "v": to_json(value, lambda item, key: encode(item, f"{path}.{key}", tensor_out))}
    if type(value) in (np.ndarray, np.memmap):
        assert isinstance(value, np.ndarray)
        tensor = _array_tensor(value) if tensor_out is not None else None
        if tensor is not None:
            return {"$": "numpy_tensor", "v": encode(tensor, path, tensor_out)}
        return {"$": "numpy", "v": _array(value, path)}
    if isinstance(value, np.generic):
        return {"$": "numpy", "v": _array(np.asarray(value), path), "scalar": True}
    if isinstance(value, pathlib.PurePath):
        return {"$": "path" if isinstance(value, pathlib.Path) else "pure_path", "v": str(value)}
    if isinstance(value, enum.Enum) and isinstance(value, (int, str)):
        return encode(value.value, path, tensor_out)
    if callable(getattr(value, "state_dict", None)):
        raise TypeError(
            f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which cannot stand in a list or tuple; "
            "put it in a dict of the state, under a key of its own"
        )
    raise TypeError(
        f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which has no typed JSON form; give it "
        "state_dict()/load_state_dict(), convert it to plain values, or wrap it in datastates.pickled(...)"
    )


class RefusedError(ValueError):
    """A value that is well formed, but is not decoded."""


def decode(value: Json, tensor_in: TensorIn | None = None, allow_pickle: bool = False) -> Any:
    """The value that :func:`encode` was given.

    Raises:
        ValueError: an unknown kind, or a pickle without ``allow_pickle``.
        DamagedCheckpointError: nothing that :func:`encode` writes.
    """
    try:
        return _decode(value, tensor_in, allow_pickle)
    except RefusedError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedCheckpointError(f"Python values that nobody has encoded: {error!r}") from error


def _decode(value: Json, tensor_in: TensorIn | None, allow_pickle: bool) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensor_in, allow_pickle) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("$")
    if kind is None and "$" not in value:
        return {key: _decode(item, tensor_in, allow_pickle) for key, item in value.items()}
    if kind == "tensor":
        if tensor_in is None:
            raise RefusedError(f"tensor {value['name']!r} is stored beside this value and was not loaded")
        return tensor_in(value["name"])
    if kind == "inline_tensor":
        return _in_torch(lambda: _uninlined(value))
    if kind == "torch_save":
        return _in_torch(lambda: _unsaved(base64.b64decode(value["v"]), allow_pickle))
    if kind == "pickle" and not allow_pickle:
        raise RefusedError(
            "this value is a pickle, which can run code; pass allow_pickle=True if you trust the checkpoint"
        )
    if kind not in _DECODERS:
        raise RefusedError(f"value of unknown kind {kind!r}: written by a newer version?")
    return _DECODERS[kind](value, lambda item: _decode(item, tensor_in, allow_pickle))


def special_objects(value: Json) -> list[dict[str, Any]]:
    """Every object of an encoded value that stands for something JSON lacks, at any depth.

    Raises:
        DamagedCheckpointError: one that stands for nothing.
    """
    found, left = [], [value]
    for item in left:  # grows while it is walked
        if type(item) is dict:
            if "$" in item:
                if type(item["$"]) is not str or (item["$"] == "tensor" and type(item.get("name")) is not str):
                    raise DamagedCheckpointError(f"Python values that nobody has encoded: {item!r:.100}")
                found.append(item)
                if item["$"] == "tensor":
                    continue
            left.extend(item.values())
        elif type(item) is list:
            left.extend(item)
    return found


def _quantized(tensor: torch.Tensor, path: str, tensor_out: TensorOut | None) -> Json:
    try:
        parts, axis = quantized.parts_of(tensor)
    except TypeError as error:
        raise TypeError(f"{path}: {error}") from None
    return {"$": "quantized", "axis": axis, "v": {k: encode(t, f"{path}.{k}", tensor_out) for k, t in parts.items()}}


def _array_tensor(array: np.ndarray) -> torch.Tensor | None:
    """The memory of a large array as a tensor; ``None`` if it is small or torch has no such element type."""
    if array.nbytes < LARGE_BYTES:
        return None
    if not array.flags.writeable or min(array.strides, default=0) < 0:
        array = array.copy()  # torch takes neither
    try:
        return torch.from_numpy(array)
    except (TypeError, ValueError):
        return None


def _joined(parts: Any, axis: Any) -> torch.Tensor:
    return _in_torch(lambda: quantized.joined(parts, axis))


def _uninlined(value: dict[str, Any]) -> torch.Tensor:
    flat = torch.frombuffer(bytearray(base64.b64decode(value["v"])) or bytearray(1), dtype=torch.uint8)
    flat = flat if value["v"] else flat[:0]
    return flat.view(dtype_of(value["dtype"])).reshape(value["shape"])


def _in_torch(make: Callable[[], T]) -> T:
    """What torch makes of it; it raises RuntimeError where Python has ValueError."""
    try:
        return make()
    except (RuntimeError, EOFError) as error:
        raise ValueError(str(error)) from error


def _unpickled(text: str) -> Any:
    try:
        return pickle.loads(base64.b64decode(text))
    except Exception as error:  # whatever the code in it raises
        raise RefusedError(f"a pickle cannot be loaded: {error!r}") from error


def _inline_tensor(tensor: torch.Tensor) -> Json:
    # clone() and not contiguous(), which leaves a stride of one element as it is, and view() then refuses it.
    host = tensor.detach().cpu().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    raw = host.reshape(-1).view(torch.uint8).numpy().tobytes() if host.numel() else b""
    return {
        "$": "inline_tensor",
        "dtype": dtype_name(host.dtype),
        "shape": list(host.shape),
        "v": base64.b64encode(raw).decode(),
    }


def _unsaved(raw: bytes, allow_pickle: bool) -> Any:
    try:
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        raise RefusedError(
            "this value was stored with torch.save and has types that only running code can restore; pass "
            f"allow_pickle=True if you trust the checkpoint ({str(error).splitlines()[0]})"
        ) from error


def _array(array: np.ndarray, path: str) -> Json:
    if array.dtype.hasobject or array.dtype.fields:
        raise TypeError(
            f"{path} is a NumPy array of {array.dtype}, which has no typed JSON form; store its fields or items as "
            "plain arrays or values, or wrap it in datastates.pickled(...)"
        )
    raw = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": raw}


def _unarray(value: Json) -> Any:
    spec = value["v"]
    array = np.frombuffer(base64.b64decode(spec["data"]), dtype=np.dtype(spec["dtype"])).reshape(spec["shape"]).copy()
    return array[()] if value.get("scalar") else array


def _items(mapping: Any, encode_item: Callable[[object, object], Json]) -> Json:
    return [[encode_item(key, "key"), encode_item(item, key)] for key, item in mapping.items()]


def _sequence(values: Any, encode_item: Callable[[object, object], Json]) -> Json:
    return [encode_item(item, i) for i, item in enumerate(values)]


def _sorted_set(values: Any, encode_item: Callable[[object, object], Json]) -> Json:
    # By representation: values of one type need not be comparable, such as None or complex numbers inside tuples.
    return _sequence(sorted(values, key=lambda item: (type(item).__name__, repr(item))), encode_item)


_ENCODERS: tuple[tuple[str, type, Callable[[Any, Callable[[object, object], Json]], Json]], ...] = (
    ("tuple", tuple, _sequence),
    ("size", torch.Size, _sequence),
    ("set", set, _sorted_set),
    ("frozenset", frozenset, _sorted_set),
    ("dict", dict, _items),
    ("ordered_dict", collections.OrderedDict, _items),
    ("defaultdict", collections.defaultdict, _items),
    ("counter", collections.Counter, _items),
    ("deque", collections.deque, lambda v, f: [v.maxlen, _sequence(v, f)]),
    ("bytes", bytes, lambda v, f: base64.b64encode(v).decode()),
    ("bytearray", bytearray, lambda v, f: base64.b64encode(v).decode()),
    ("complex", complex, lambda v, f: [repr(v.real), repr(v.imag)]),
    ("dtype", torch.dtype, lambda v, f: dtype_name(v)),
    ("device", torch.device, lambda v, f: str(v)),
    ("datetime", datetime.datetime, lambda v, f: v.isoformat()),
    ("pickle", Pickled, lambda v, f: base64.b64encode(pickle.dumps(v.value)).decode()),
)

_Decoder = Callable[[Any, Callable[[Json], Any]], Any]
_DECODERS: dict[str, _Decoder] = {
    "none": lambda v, f: None,
    "float": lambda v, f: float(v["v"]),
    "tuple": lambda v, f: tuple(map(f, v["v"])),
    "size": lambda v, f: torch.Size(v["v"]),
    "set": lambda v, f: set(map(f, v["v"])),
    "frozenset": lambda v, f: frozenset(map(f, v["v"])),
    "dict": lambda v, f: {f(key): f(item) for key, item in v["v"]},
    "ordered_dict": lambda v, f: collections.OrderedDict((f(key), f(item)) for key, item in v["v"]),
    # A factory cannot be stored without code: the entries come back, missing keys raise as in a dict.
    "defaultdict": lambda v, f: collections.defaultdict(None, ((f(key), f(item)) for key, item in v["v"])),
    "counter": lambda v, f: collections.Counter({f(key): f(item) for key, item in v["v"]}),
    "deque": lambda v, f: collections.deque(map(f, v["v"][1]), maxlen=v["v"][0]),
    "bytes": lambda v, f: base64.b64decode(v["v"]),
    "bytearray": lambda v, f: bytearray(base64.b64decode(v["v"])),
    "complex": lambda v, f: complex(float(v["v"][0]), float(v["v"][1])),
    "numpy": lambda v, f: _unarray(v),
    "numpy_tensor": lambda v, f: f(v["v"]).numpy(),
    "quantized": lambda v, f: _joined(f(v["v"]), v["axis"]),
    "path": lambda v, f: pathlib.Path(v["v"]),
    "pure_path": lambda v, f: pathlib.PurePath(v["v"]),
    "dtype": lambda v, f: dtype_of(v["v"]),
    "device": lambda v, f: _in_torch(lambda: torch.device(v["v"])),
    "datetime": lambda v, f: datetime.datetime.fromisoformat(v["v"]),
    "pickle": lambda v, f: _unpickled(v["v"]),
}
