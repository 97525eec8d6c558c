"""The manifest: what is written comes back; what was altered, truncated or made up is refused, in one way."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datastates import DamagedCheckpointError
from datastates.manifest import (
    FORMAT_VERSION,
    DataFile,
    Manifest,
    ObjectsFile,
    Shard,
    TensorInfo,
    dump,
    load,
    tensors_json,
)
from oneflow_sbp import Box

WHERE = "runs/gpt/step-00000012/manifest.json"


def data_file(name: str, payload_bytes: int, num_extents: int = 1) -> DataFile:
    ends = np.linspace(4096, 4096 + payload_bytes, num_extents + 1)[1:].astype(np.uint64) if payload_bytes else []
    return DataFile(
        name, 4096 + payload_bytes, 4096, 7, np.array(ends, dtype=np.uint64), np.arange(len(ends), dtype=np.uint32)
    )


def example() -> Manifest:
    """Two ranks: a tensor cut in two, an empty one, a scalar."""
    return Manifest(
        step=12,
        num_ranks=2,
        tensors={
            "model.weight": TensorInfo(
                "float32",
                (4, 3),
                (Shard(0, 4096, 4120, Box((0, 0), (2, 3))), Shard(1, 4096, 4120, Box((2, 0), (2, 3)))),
            ),
            "model.empty": TensorInfo("bfloat16", (0, 3), (Shard(0, 4120, 4120, Box((0, 0), (0, 3))),)),
            "model.scale": TensorInfo("float64", (), (Shard(1, 4120, 4128, Box((), ())),)),
        },
        files=(data_file("rank-00000.safetensors", 24, 2), data_file("rank-00001.safetensors", 32, 3)),
        objects=(ObjectsFile("rank-00000.objects.json", 2, 1), ObjectsFile("rank-00001.objects.json", 2, 1)),
        aliases={"model.head": "model.weight"},
        metadata={"run": "gpt", "nested": [1, None, {"ü": 2.5}]},
        created_unix_s=1767225600.25,
    )


def assert_equal(a: Manifest, b: Manifest) -> None:
    for x, y in zip(a.files, b.files, strict=True):
        for one, other in zip(vars(x).values(), vars(y).values(), strict=True):
            assert np.array_equal(one, other)
    assert replace(a, files=()) == replace(b, files=())


def resigned(data: Any) -> bytes:
    """Bytes of a manifest that says ``data`` and carries the right digest: what a hostile writer can make."""
    data = {key: value for key, value in data.items() if key != "digest"}
    body = json.dumps(data)[:-1].encode()
    return body + b',"digest":"sha256:%s"}\n' % hashlib.sha256(body).hexdigest().encode()


def as_json() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(dump(example()))
    return data


def test_what_is_written_comes_back() -> None:
    assert_equal(load(dump(example()), WHERE), example())


def test_a_kept_text_of_the_tensors_makes_the_same_bytes() -> None:
    assert dump(example(), tensors_json(example().tensors)) == dump(example())


def test_the_digest_covers_all_before_it_as_the_specification_says() -> None:
    raw = dump(example())
    assert raw.endswith(b"\n")
    assert raw.count(b"\n") == 1
    assert raw[-85:] == b',"digest":"sha256:%s"}\n' % hashlib.sha256(raw[:-85]).hexdigest().encode()


def test_data_bytes_leave_headers_out() -> None:
    assert example().data_bytes == 24 + 32


def test_every_single_altered_byte_is_detected() -> None:
    raw = dump(example())
    for position in range(len(raw)):
        altered = bytearray(raw)
        altered[position] ^= 1
        with pytest.raises(DamagedCheckpointError, match=re.escape(WHERE)):
            load(bytes(altered), WHERE)


def test_every_truncation_and_any_appended_byte_is_detected() -> None:
    raw = dump(example())
    for length in range(len(raw)):
        with pytest.raises(DamagedCheckpointError, match="SHA-256 does not match: truncated or altered"):
            load(raw[:length], WHERE)
    for extra in (b"\n", b" ", b"\0", raw):
        with pytest.raises(DamagedCheckpointError, match="SHA-256"):
            load(raw + extra, WHERE)


def set_shard(data: dict[str, Any], position: int, value: Any, shard: int = 0) -> None:
    data["tensors"]["model.weight"]["shards"][shard][position] = value


def set_in_file(data: dict[str, Any], key: str, value: Any) -> None:
    data["files"][0][key] = value


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "newer": (
        lambda d: d.update(format_version=FORMAT_VERSION + 1),
        r"format version 3 is newer than 2.*upgrade elastates",
    ),
    "other format": (lambda d: d.update(format="tar"), "format is 'tar', expected 'elastates-checkpoint'"),
    "negative offset": (lambda d: set_shard(d, 1, -8), "-8 is not a count"),
    "huge offset": (lambda d: set_shard(d, 2, 1 << 64), f"{1 << 64} is not a count"),
    "offset past the end": (lambda d: set_shard(d, 2, 1 << 40), r"model\.weight: bytes \[4096, .*rank-00000"),
    "inside the header": (lambda d: set_shard(d, 1, 4000), r"model\.weight: bytes \[4000, 4120\) leave the payload"),
    "backwards": (lambda d: set_shard(d, 1, 4121), r"model\.weight: bytes \[4121, 4120\)"),
    "file that is not there": (lambda d: set_shard(d, 0, 2), r"model\.weight: data file 2 of 2"),
    "file as a boolean": (lambda d: set_shard(d, 0, True), "True is not a count"),
    "fraction": (lambda d: set_shard(d, 1, 4096.5), "4096.5 is not a count"),
    "overlapping boxes": (lambda d: set_shard(d, 3, [1, 0], 1), r"model\.weight: boxes .* and .* overlap"),
    "box outside": (lambda d: set_shard(d, 3, [3, 0], 1), r"model\.weight: Box.* does not lie inside \[4, 3\]"),
    "negative box": (lambda d: set_shard(d, 3, [-1, 0]), "-1 is not a count"),
    "box of another rank": (lambda d: set_shard(d, 3, [0]), r"model\.weight: Box.* does not lie inside"),
    "missing shard": (lambda d: d["tensors"]["model.weight"]["shards"].pop(), "hold 6 of 12 elements"),
    "twice the same shard": (
        lambda d: d["tensors"]["model.weight"].update(shards=[d["tensors"]["model.weight"]["shards"][0]] * 2),
        r"model\.weight: boxes .* overlap",
    ),
    "unknown dtype": (lambda d: d["tensors"]["model.weight"].update(dtype="float7"), "dtype 'float7' is unknown"),
    "another dtype": (lambda d: d["tensors"]["model.weight"].update(dtype="float64"), "of float64 does not fill bytes"),
    "parent directory": (lambda d: set_in_file(d, "name", "../rank-00000.safetensors"), "not a plain file name"),
    "absolute path": (lambda d: set_in_file(d, "name", "/etc/passwd"), "'/etc/passwd' is not a plain file name"),
    "hidden file": (lambda d: set_in_file(d, "name", ".."), "'..' is not a plain file name"),
    "empty name": (lambda d: set_in_file(d, "name", ""), "'' is not a plain file name"),
    "name with a newline": (lambda d: set_in_file(d, "name", "a\n"), "not a plain file name"),
    "objects outside": (lambda d: d["objects"][0].update(name="../../x"), "'../../x' is not a plain file name"),
    "one name twice": (lambda d: set_in_file(d, "name", "rank-00001.safetensors"), "two files have one name"),
    "extents with a hole": (lambda d: set_in_file(d, "extent_ends", [4100, 4110]), "do not tile its 4120 bytes"),
    "extents backwards": (lambda d: set_in_file(d, "extent_ends", [4130, 4120]), "do not tile"),
    "extents negative": (lambda d: set_in_file(d, "extent_ends", [-1, 4120]), "."),
    "extents as text": (lambda d: set_in_file(d, "extent_ends", ["4108", "4120"]), "'4108' is not a count"),
    "extents as fractions": (lambda d: set_in_file(d, "extent_ends", [4108.9, 4120]), "4108.9 is not a count"),
    "too few checksums": (lambda d: set_in_file(d, "extent_crc32c", [1]), "do not tile"),
    "checksum too large": (lambda d: set_in_file(d, "extent_crc32c", [1, 1 << 32]), "."),
    "header longer than the file": (lambda d: set_in_file(d, "header_bytes", 1 << 40), "do not tile"),
    "alias of nothing": (lambda d: d.update(aliases={"a": "b"}), "a is an alias of b, which is not stored"),
    "negative step": (lambda d: d.update(step=-1), "-1 is not a count"),
    "no ranks": (lambda d: d.update(num_ranks=0), "num_ranks is 0"),
    "fewer objects than ranks": (lambda d: d["objects"].pop(), "1 objects files of 2 ranks"),
    "missing member": (lambda d: d.pop("files"), "files"),
    "null": (lambda d: d.update(tensors=None), "."),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_manifest_with_the_right_digest_is_refused_by_name(case: str) -> None:
    data = as_json()
    alter, said = HOSTILE[case]
    alter(data)
    with pytest.raises(DamagedCheckpointError, match=f"^{re.escape(WHERE)}: .*{said}"):
        load(resigned(data), WHERE)
    with pytest.raises(DamagedCheckpointError, match=f"^{re.escape(WHERE)}: .*{said}"):
        dict(load(resigned(data), WHERE, on_demand=True).tensors)


def test_on_demand_a_tensor_is_checked_when_it_is_asked_for() -> None:
    data = as_json()
    set_shard(data, 1, -8)
    found = load(resigned(data), WHERE, on_demand=True)
    assert list(found.tensors) == list(example().tensors)
    assert len(found.tensors) == len(example().tensors)
    assert "model.weight" in found.tensors
    assert "model.weigth" not in found.tensors
    with pytest.raises(KeyError):
        found.tensors["model.weigth"]
    for _ in range(2):
        with pytest.raises(DamagedCheckpointError, match="-8 is not a count"):
            found.tensors["model.weight"]
    (sound,) = [name for name in example().tensors if name != "model.weight"][:1]
    assert found.tensors[sound] == example().tensors[sound]
    assert found.tensors[sound] is found.tensors[sound]


@pytest.mark.parametrize("name", ["tensors", "a \\ backslash", 'a "quote"', "größe", "{", "\ud800", "tab\t", ""])
def test_on_demand_finds_tensors_by_any_name(name: str) -> None:
    weight = example().tensors["model.weight"]
    other = example().tensors["model.scale"]
    nested = {"tensors": {"x": 1}, name: {"tensors": [{}]}}
    saved = replace(example(), tensors={"first": other, name: weight}, aliases={}, metadata=nested)
    found = load(dump(saved), WHERE, on_demand=True)
    assert dict(found.tensors) == saved.tensors
    assert list(found.tensors) == ["first", name]
    assert found.metadata == nested
    assert None not in found.tensors
    assert "\udfff" not in found.tensors


def test_on_demand_and_at_once_agree_on_a_name_that_comes_twice() -> None:
    twice = dump(example()).replace(b'"model.scale":', b'"model.weight":', 1)
    raw = signed_again(twice)
    at_once, on_demand = load(raw, WHERE), load(raw, WHERE, on_demand=True)
    assert dict(on_demand.tensors) == at_once.tensors
    assert len(on_demand.tensors) == len(at_once.tensors) == 2


def signed_again(raw: bytes) -> bytes:
    body = raw[: raw.rindex(b',"digest"')]
    return body + b',"digest":"sha256:%s"}\n' % hashlib.sha256(body).hexdigest().encode()


def test_deep_nesting_is_refused_and_does_not_end_the_process() -> None:
    body = b'{"format":' + b"[" * 200_000
    raw = body + b',"digest":"sha256:%s"}\n' % hashlib.sha256(body).hexdigest().encode()
    with pytest.raises(DamagedCheckpointError, match=re.escape(WHERE)):
        load(raw, WHERE)


def paths_in(data: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a JSON value."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [prefix, *(path for key, item in items for path in paths_in(item, (*prefix, key)))]


PLACES = [path for path in paths_in(as_json()) if path]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(PLACES), json_values), min_size=1, max_size=3), st.booleans())
def test_fuzzed_manifests_raise_nothing_else(changes: list[tuple[tuple[Any, ...], Any]], on_demand: bool) -> None:
    data = as_json()
    for (*parents, last), value in changes:
        where: Any = data
        try:
            for key in parents:
                where = where[key]
            where[last] = value
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change removed that place
    try:
        found = load(resigned(data), WHERE, on_demand=on_demand)
        tensors = dict(found.tensors)
    except DamagedCheckpointError:
        return
    assert found.num_ranks >= 1
    assert all(shard.end <= found.files[shard.file].size_bytes for t in tensors.values() for shard in t.shards)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_nothing_else(body: bytes) -> None:
    raw = body + b',"digest":"sha256:%s"}\n' % hashlib.sha256(body).hexdigest().encode()
    for candidate in (body, raw):
        with pytest.raises(DamagedCheckpointError, match=re.escape(WHERE)):
            load(candidate, WHERE)


def test_metadata_that_is_no_json_is_not_written() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        dump(replace(example(), metadata={"loss": float("nan")}))
