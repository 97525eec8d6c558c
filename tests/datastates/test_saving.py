"""Saving behind training: what a failure of one checkpoint does, and what it does not do, to the others."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from training import small_model, train_step

from datastates import Checkpointer, CheckpointError, CheckpointFuture, StorageFullError, publishing, storage_ops
from datastates.directory import read_manifest

import _elastates


@pytest.fixture(autouse=True)
def _faults_end_with_the_test() -> Iterator[None]:
    yield
    _elastates.clear_fault()


@pytest.fixture
def state() -> dict[str, Any]:
    model = small_model()
    return {"model": model, "optimizer": torch.optim.AdamW(model.parameters()), "note": {"n": 1}}


def fail_step_one(checkpoints: Checkpointer, state: dict[str, Any]) -> CheckpointError:
    """Step 0 without the fault having struck yet, step 1 with, step 2 after; returns the error of step 1."""
    failed = checkpoints.checkpoint(1, state)
    error = failed.durable.exception(60)
    assert isinstance(error, CheckpointError)
    with pytest.raises(CheckpointError):
        failed.durable.result()
    return error


def left(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@pytest.mark.parametrize(
    ("op", "code", "kind"),
    [
        ("write", errno.EIO, CheckpointError),
        ("write", errno.ENOSPC, StorageFullError),
        ("write", errno.EDQUOT, StorageFullError),
        ("fsync", errno.EIO, CheckpointError),
        ("fallocate", errno.ENOSPC, StorageFullError),
        ("open", errno.EACCES, CheckpointError),
    ],
)
def test_a_fault_of_the_storage_fails_that_checkpoint_alone(
    tmp_path: Path,
    state: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    op: str,
    code: int,
    kind: type[CheckpointError],
) -> None:
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, state).durable.result(60)
        _elastates.set_fault(op, error=code)
        error = fail_step_one(checkpoints, state)
        assert _elastates.num_faults_struck() == 1
        assert type(error) is kind
        assert str(error).startswith("checkpoint of step 1 on rank 0: ")
        assert os.strerror(code) in str(error)
        assert read_manifest(checkpoints.checkpoint(2, state).durable.result(60)).step == 2
    stats = checkpoints.stats()
    assert (stats.num_begun, stats.num_durable, stats.num_failed) == (3, 2, 1)
    assert left(tmp_path) == [".lock", "step-00000000", "step-00000002"]
    assert str(error) in caplog.text


def test_a_failure_after_the_engine_has_begun_keeps_the_gate_shut_until_it_lets_go(
    tmp_path: Path, state: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The native copy reads the live tensors although the checkpoint is lost: nobody may write to them yet."""

    def refuse(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with Checkpointer(tmp_path) as checkpoints:
        monkeypatch.setattr(storage_ops, "write_synced", refuse)
        handle = checkpoints.checkpoint(1, state)
        error = handle.durable.exception(60)
        monkeypatch.undo()
        assert "rank-00000.objects.json" in str(error)
        assert handle.snapshot is not None
        handle.snapshot.wait_written()
        checkpoints.checkpoint(1, state).durable.result(60)
    assert "No space left" in caplog.text
    assert left(tmp_path) == [".lock", "step-00000001"]


def test_a_manifest_that_cannot_be_written_publishes_nothing(
    tmp_path: Path, state: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, state).durable.result(60)
        _elastates.set_fault("small_write", nth=2, error=errno.EIO)  # the objects file is the first
        assert "manifest.json" in str(fail_step_one(checkpoints, state))
        assert checkpoints.steps() == [0]
        assert checkpoints.latest() == tmp_path / "step-00000000"
    assert "Input/output error" in caplog.text
    assert left(tmp_path) == [".lock", "step-00000000"]


def test_too_little_space_is_found_before_anything_is_written(
    tmp_path: Path, state: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Checkpointer(tmp_path) as checkpoints:
        real = os.statvfs(tmp_path)
        monkeypatch.setattr("os.statvfs", lambda path: os.statvfs_result((*real[:4], 1, *real[5:])))
        error = fail_step_one(checkpoints, state)
    assert isinstance(error, StorageFullError)
    assert "MB free, the checkpoint takes" in str(error)
    assert "MB free" in caplog.text
    assert left(tmp_path) == [".lock"]


def test_a_state_that_has_no_plan_leaves_no_attempt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, state: dict[str, Any]
) -> None:
    with Checkpointer(tmp_path) as checkpoints:
        error = checkpoints.checkpoint(0, {"__metadata__": torch.ones(1)}).durable.exception(60)
        assert "rename its key" in str(error)
        assert left(tmp_path) == [".lock"]
        checkpoints.checkpoint(0, state).durable.result(60)
    assert "rename its key" in caplog.text


def test_a_second_job_in_the_directory_is_told_by_whom_it_is_used(
    tmp_path: Path, state: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with Checkpointer(tmp_path) as first, Checkpointer(tmp_path) as second:
        first.checkpoint(0, state).durable.result(60)
        error = second.checkpoint(1, state).durable.exception(60)
        assert f"pid {os.getpid()}; end that job, or give this one another directory" in str(error)
    assert "DirectoryBusyError" in caplog.text


def test_a_published_step_is_not_taken_again(
    tmp_path: Path, state: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with Checkpointer(tmp_path) as checkpoints:
        before = (checkpoints.checkpoint(1, state).durable.result(60) / "manifest.json").read_bytes()
        error = fail_step_one(checkpoints, state)
    assert "nothing is ever overwritten; continue from restore()'s step, or use another directory" in str(error)
    assert (tmp_path / "step-00000001" / "manifest.json").read_bytes() == before
    assert left(tmp_path) == [".lock", "step-00000001"]
    assert "nothing is ever overwritten" in caplog.text


def test_wait_does_not_return_before_the_futures_say_so(
    tmp_path: Path, state: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = CheckpointFuture._resolve
    in_flight: list[int] = []

    def noting(future: CheckpointFuture[Any], value: Any) -> None:
        if isinstance(value, Path):
            in_flight.append(len(checkpoints._in_flight))
        resolve(future, value)

    monkeypatch.setattr(CheckpointFuture, "_resolve", noting)
    with Checkpointer(tmp_path) as checkpoints:
        handle = checkpoints.checkpoint(0, state)
        checkpoints.wait()
        assert handle.durable.done()
    assert in_flight == [1]
    assert checkpoints._in_flight == {}


def test_retention_keeps_the_last_and_every_kth(tmp_path: Path, state: dict[str, Any]) -> None:
    with Checkpointer(tmp_path, keep_last=2, keep_every=4) as checkpoints:
        for step in range(1, 8):
            checkpoints.checkpoint(step, state)
            train_step(state["model"], state["optimizer"])
    assert checkpoints.steps() == [4, 6, 7]


def test_retention_removes_nothing_while_the_newest_is_not_whole(
    tmp_path: Path, state: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    finish = publishing.Publisher.prune

    def damage_first(publisher: publishing.Publisher, *pinned: Any) -> None:
        (tmp_path / "step-00000001" / "rank-00000.objects.json").unlink(missing_ok=True)
        finish(publisher, *pinned)

    with Checkpointer(tmp_path, keep_last=1) as checkpoints:
        checkpoints.checkpoint(0, state).durable.result(60)
        monkeypatch.setattr(publishing.Publisher, "prune", damage_first)
        checkpoints.checkpoint(1, state)
    assert checkpoints.steps() == [0, 1]
    assert "retention could not remove" in caplog.text


def test_a_newer_step_of_an_older_run_does_not_push_out_what_was_just_published(
    tmp_path: Path, state: dict[str, Any]
) -> None:
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(9, state)
    with Checkpointer(tmp_path, keep_last=1) as checkpoints:
        path = checkpoints.checkpoint(5, state).durable.result(60)
    assert path.is_dir()
    assert checkpoints.steps() == [5, 9]
