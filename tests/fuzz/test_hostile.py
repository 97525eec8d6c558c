"""Hostile manifests and Python state: read or refused, nothing else; chosen by hypothesis."""

import json
import logging
from typing import Any

import pytest
from hostile import DELETE, HOSTILE_OBJECTS, HOSTILE_VALUES, Target, places, replace_at, signed, signed_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.just("$"), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(autouse=True)
def _no_warnings_of_damage() -> Any:
    logging.getLogger("datastates").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("datastates").setLevel(logging.NOTSET)


def test_the_honest_checkpoint_is_read(target: Target) -> None:
    assert target.read_with(signed(target.copy())) == "read"
    assert target.with_objects(target.objects) == "read"


def test_hostile_values_at_every_place_of_the_manifest(target: Target) -> None:
    """Every fifth value at each place, another fifth at the next: the fuzzer tries all."""
    seen = {"read": 0, "refused": 0}
    for number, path in enumerate(places(target.manifest)):
        if path == ("digest",):
            continue
        for value in HOSTILE_VALUES[number % 5 :: 5]:
            data = target.copy()
            replace_at(data, path, value)
            seen[target.read_with(signed(data))] += 1
    assert seen["refused"] > 4 * seen["read"] > 0


@pytest.mark.parametrize("number", range(len(HOSTILE_OBJECTS)))
def test_hostile_python_state(target: Target, number: int) -> None:
    target.with_objects(json.dumps({"progress": HOSTILE_OBJECTS[number]}).encode())


@QUICK
@given(st.data())
def test_any_json_anywhere_in_the_manifest(target: Target, data: st.DataObject) -> None:
    changed = target.copy()
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(changed)))
        replace_at(changed, path, data.draw(st.sampled_from(HOSTILE_VALUES) | JSON))
    target.read_with(signed(changed))


@QUICK
@given(JSON)
def test_any_json_as_python_state(target: Target, value: Any) -> None:
    target.with_objects(json.dumps({"progress": value}).encode())


@QUICK
@given(st.binary(max_size=200))
def test_any_bytes_as_manifest_or_python_state(target: Target, raw: bytes) -> None:
    assert target.read_with(raw) == "refused"
    assert target.read_with(signed_bytes(raw)) == "refused"
    target.with_objects(raw)


@pytest.mark.parametrize("depth", [1000, 100_000])
def test_nesting_does_not_exhaust_the_stack(target: Target, depth: int) -> None:
    assert target.with_objects(b'{"progress":' + b"[" * depth + b"]" * depth + b"}") in ("read", "refused")
    assert target.read_with(signed_bytes(b'{"format":' + b"[" * depth)) == "refused"


def test_deleting_is_among_the_hostile_values() -> None:
    assert DELETE in HOSTILE_VALUES
