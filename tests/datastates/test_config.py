"""Configuration: every bad value is refused with the field, the value and what was expected."""

import dataclasses
from typing import Any

import pytest

from datastates import Checkpointer, CheckpointerConfig


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"policy": "drop"}, "policy is 'drop', expected one of wait, skip, error"),
        ({"on_failure": "ignore"}, "on_failure is 'ignore', expected one of warn, raise"),
        ({"verify_immutability": "all"}, "verify_immutability is 'all', expected one of off, sample, full"),
        ({"write_backend": "aio"}, "write_backend is 'aio', expected one of auto, threads, io_uring"),
        ({"arena_mb": 0}, "arena_mb is 0, expected at least 1, or None"),
        ({"keep_last": 0}, "keep_last is 0, expected at least 1, or None"),
        ({"keep_every": -2}, "keep_every is -2, expected at least 1, or None"),
        ({"max_consecutive_failures": 0}, "max_consecutive_failures is 0, expected at least 1"),
        ({"copy_threads": 0}, "copy_threads is 0"),
        ({"read_threads": 0}, "read_threads is 0"),
        ({"write_depth": 0}, "write_depth is 0"),
        ({"sample_bytes": 0}, "sample_bytes is 0"),
        ({"commit_timeout_s": 0}, "commit_timeout_s is 0, expected more than 0"),
        ({"commit_timeout_s": float("nan")}, "commit_timeout_s is nan, expected more than 0"),
        ({"chunk_bytes": 5000}, "chunk_bytes is 5000, expected a multiple of 4096"),
        ({"chunk_bytes": 0}, "chunk_bytes is 0, expected a multiple of 4096"),
        ({"lazy": "model.*"}, r"lazy is 'model\.\*', expected a list of patterns"),
    ],
)
def test_a_bad_value_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CheckpointerConfig.of(options)


def test_an_unknown_option_is_named_with_those_that_exist(tmp_path: Any) -> None:
    with pytest.raises(TypeError, match=r"unknown option keep_lst; known are .*keep_last"):
        Checkpointer(tmp_path, keep_lst=3)


def test_it_is_frozen_and_takes_lists_for_tuples() -> None:
    config = CheckpointerConfig.of({"lazy": ["model.frozen.*"]})
    assert config.lazy == ("model.frozen.*",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.policy = "skip"  # type: ignore[misc]


def test_the_arena_is_what_was_asked_for() -> None:
    assert CheckpointerConfig(arena_mb=7).arena_bytes(10**9) == 7_000_000


def test_by_default_the_arena_takes_one_checkpoint_within_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = 64 << 30
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": memory // 4096}.__getitem__)
    config = CheckpointerConfig()
    assert config.arena_bytes(10**9) == 10**9
    assert config.arena_bytes(10**12) == memory // 8
    assert config.arena_bytes(0) == 2 * config.chunk_bytes
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert config.arena_bytes(10**12) == memory // 32
