"""Typed JSON: values come back with the types they had, through real JSON text, and no code is run."""

import collections
import datetime
import enum
import json
import math
import pathlib
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training import assert_same_bits

from datastates import pickled
from datastates.typed_json import decode, encode


def through_text(value: object, **decoding: Any) -> Any:
    return decode(json.loads(json.dumps(encode(value, "state.x"))), **decoding)


class Color(enum.IntEnum):
    RED = 1


NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=datetime.timezone.utc)  # noqa: UP017
EXAMPLES: dict[str, Any] = {
    "none": None,
    "true": True,
    "int": -3,
    "big int": 2**200,
    "float": 0.1,
    "str": "grüß dich \x00 \ud800",
    "list": [1, [2, []]],
    "dict": {"a": {"b": None}},
    "int keys": {1: "a", "1": "b", None: "c", False: "d", (1, 2): "e"},
    "dollar key": {"$": "tuple", "v": [1]},
    "tuple": (1, ("a", None), ()),
    "size": torch.Size([2, 3]),
    "set": {3, 1, 2},
    "mixed set": {1, "a", None, (1, None), (1, "b"), 2.5},
    "complex set": {1j, 2j},
    "frozenset": frozenset({"a", "b"}),
    "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
    "counter": collections.Counter("abca"),
    "deque": collections.deque([1, 2], maxlen=3),
    "endless deque": collections.deque([1]),
    "bytes": b"\x00\xff",
    "bytearray": bytearray(b"ab"),
    "complex": complex(1.5, -0.0),
    "dtype": torch.bfloat16,
    "device": torch.device("cpu"),
    "datetime": NOW,
    "path": pathlib.Path("runs/gpt"),
    "pure path": pathlib.PurePosixPath("runs/gpt"),
    "numpy scalar": np.float32(0.1),
    "numpy bool": np.bool_(True),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_values_come_back_equal_and_of_the_same_type(name: str) -> None:
    value = EXAMPLES[name]
    back = through_text(value)
    assert type(back) is type(value)
    assert back == value


def test_order_of_mappings_and_bounds_of_deques_survive() -> None:
    assert list(through_text(EXAMPLES["ordered"])) == ["b", "a"]
    assert through_text(EXAMPLES["deque"]).maxlen == 3


def test_a_default_factory_is_not_kept() -> None:
    back = through_text(collections.defaultdict(list, a=[1]))
    assert type(back) is collections.defaultdict
    assert back == {"a": [1]}
    assert back.default_factory is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308, 0.1 + 0.2])
def test_floats_come_back_bit_for_bit(value: float) -> None:
    assert struct.pack("<d", through_text(value)) == struct.pack("<d", value)
    assert struct.pack("<d", through_text({"a": (value,)})["a"][0]) == struct.pack("<d", value)


def test_complex_infinities_and_signed_zeros_survive() -> None:
    back = through_text(complex(-math.inf, -0.0))
    assert back.real == -math.inf
    assert math.copysign(1, back.imag) == -1


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers() | st.just("$"), inner, max_size=4)
        | st.sets(st.integers() | st.text(max_size=3) | st.none(), max_size=4)
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Equal, and of equal types at every depth."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(map(type, a)) == list(map(type, b)) and all(k in b and same(v, b[k]) for k, v in a.items())
    return bool(a == b)


@given(values)
def test_any_nesting_comes_back(value: Any) -> None:
    assert same(value, through_text(value))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">i2").reshape(2, 3),
        np.zeros((0, 3), dtype=np.float32),
        np.array(1.5),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(10)[::3],
        np.array(["a", "bcd"]),
        np.array(["2026-01-02"], dtype="datetime64[D]"),
        np.array([np.nan, -0.0]),
        np.array([True, False]),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_come_back_and_may_be_written_to(array: np.ndarray) -> None:
    back = through_text(array)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable


@pytest.mark.parametrize(
    "array",
    [np.array([object()]), np.zeros(2, dtype=[("a", "i4"), ("b", "f4")])],
    ids=["objects", "records"],
)
def test_arrays_that_would_lose_their_type_are_refused_by_name(array: np.ndarray) -> None:
    with pytest.raises(TypeError, match=r"state\.x\.grid.*NumPy"):
        encode({"grid": array}, "state.x")


class Marked(np.ndarray):
    pass


@pytest.mark.parametrize(
    "array",
    [np.ma.masked_array([1, 2], [0, 1]), np.zeros(2).view(Marked), np.rec.array([(1,)], dtype=[("a", "i4")])],
    ids=["masked", "subclass", "records"],
)
def test_array_subclasses_that_would_come_back_as_plain_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(TypeError, match=r"state\.x\.grid is a .*no typed JSON form"):
        encode({"grid": array}, "state.x")


@pytest.mark.parametrize(
    "array",
    [
        np.arange(1 << 18, dtype=np.float32).reshape(512, 512),
        np.asfortranarray(np.arange(1 << 18, dtype=np.int16).reshape(512, 512)),
        np.arange(1 << 19, dtype=np.uint8)[::-1],
        np.arange(1 << 20, dtype=np.uint8)[::3],
        np.frombuffer(bytes(range(256)) * 1024, dtype=np.complex64),
    ],
    ids=["plain", "fortran", "reversed", "strided", "read-only"],
)
def test_large_arrays_are_stored_as_tensors_where_there_is_a_place_for_them(array: np.ndarray) -> None:
    out: dict[str, torch.Tensor] = {}

    def store(path: str, tensor: torch.Tensor) -> str:
        out[path] = tensor.clone()
        return path

    encoded = encode({"a": array}, "state", store)
    assert set(out) == {"state.a"}
    assert len(json.dumps(encoded)) < 200
    back = decode(json.loads(json.dumps(encoded)), out.__getitem__)["a"]
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()
    assert through_text(array).tobytes() == array.tobytes(), "inline where there is none"


@pytest.mark.parametrize("dtype", [">f4", "M8[s]", "U8"])
def test_large_arrays_that_torch_has_no_type_for_stay_inline(dtype: str) -> None:
    array = np.zeros(1 << 18, dtype=dtype)
    back = decode(encode(array, "state", lambda path, tensor: pytest.fail(path)))
    assert (back.dtype, back.shape) == (array.dtype, array.shape)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6, dtype=torch.uint8),
        torch.tensor(2.5, dtype=torch.bfloat16),
        torch.zeros(0, 4),
        torch.tensor([True, False]),
        torch.randn(3, 4).t(),
        torch.arange(4.0)[1::3],
        torch.arange(4.0)[2::2],
        torch.randn(3, dtype=torch.complex64),
        torch.randn(3, dtype=torch.complex64).conj(),
        torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn),
        torch.nn.Parameter(torch.randn(2)),
    ],
    ids=lambda t: f"{t.dtype}{list(t.shape)}",
)
def test_inline_tensors_come_back_bit_for_bit(tensor: torch.Tensor) -> None:
    assert_same_bits(through_text({"t": tensor})["t"], tensor)


def test_tensors_inside_are_handed_out_and_asked_for_by_path() -> None:
    first, second = torch.ones(2), torch.zeros(3)
    out: dict[str, torch.Tensor] = {}

    def store(path: str, tensor: torch.Tensor) -> str:
        out[path] = tensor
        return path

    encoded = encode({"a": [first, {"b": (second,)}], 3: first}, "state", store)
    assert {path: id(tensor) for path, tensor in out.items()} == {
        "state.a.0": id(first),
        "state.a.1.b.0": id(second),
        "state.3": id(first),
    }
    back = decode(json.loads(json.dumps(encoded)), out.__getitem__)
    assert back["a"][0] is first
    assert back["a"][1]["b"][0] is second


def test_a_tensor_that_was_not_loaded_is_named() -> None:
    with pytest.raises(ValueError, match=r"tensor 'state\.t' is stored beside this value"):
        decode({"$": "tensor", "name": "state.t"})


def test_the_encoding_shares_nothing_with_the_value() -> None:
    inner = [1]
    encoded = encode({"a": inner}, "state")
    inner.append(2)
    assert decode(encoded) == {"a": [1]}


class Unknown:
    pass


@pytest.mark.parametrize(
    "value",
    [Unknown(), Unknown, lambda: 0, range(3), collections.namedtuple("Point", "x")(1), memoryview(b"")],
    ids=lambda value: type(value).__name__,
)
def test_an_unknown_type_is_refused_with_path_and_remedy(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^progress\.a\.1 is a .*no typed JSON form.*state_dict.*datastates\.pickled"):
        encode({"a": [0, value]}, "progress")


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown kind 'blob': written by a newer version"):
        decode({"a": [{"$": "blob", "v": 1}]})


class Trap:
    sprung = False

    def __reduce__(self) -> Any:
        return (setattr, (Trap, "sprung", True))


def test_a_pickle_is_made_and_loaded_only_on_request() -> None:
    value = {1: Unknown}
    assert through_text({"x": pickled(value)}, allow_pickle=True) == {"x": value}
    text = encode([pickled(Trap())], "state")
    with pytest.raises(ValueError, match=r"can run code; pass allow_pickle=True"):
        decode(text)
    assert not Trap.sprung


class Phase(enum.Enum):
    WARMUP = "warmup"


def test_enumerations_that_are_numbers_or_strings_come_back_as_their_values() -> None:
    back = through_text({"c": Color.RED})
    assert type(back["c"]) is int
    assert back == {"c": Color.RED}


def test_other_enumerations_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^state\.x is a .*Phase, which has no typed JSON form"):
        encode(Phase.WARMUP, "state.x")
