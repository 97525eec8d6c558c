"""What fails, fails one checkpoint, by name, and nothing else: training goes on, the next one succeeds."""

import asyncio
import errno
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from held_storage import SMALL_ARENA, HeldStorage, assert_stored, cloned_module, cloned_optimizer, train, wide_model

from datastates import Checkpoint, Checkpointer, CheckpointError, CheckpointFuture, StorageFullError
from datastates.saving import SavePipeline

import _elastates

Open = Callable[..., Checkpointer]
State = dict[str, Any]
BACKENDS = ["threads"] + (["io_uring"] if _elastates.build_info()["has_uring"] else [])


@pytest.fixture
def state() -> State:
    """A model that takes several blocks of 64 KiB, and an optimizer with state."""
    model = wide_model(width=128)
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    return {"model": model, "optimizer": optimizer, "progress": {"seen": 3}}


def clones(state: State) -> dict[str, torch.Tensor]:
    return cloned_module(state["model"]) | cloned_optimizer(state["optimizer"], state["model"])


def entries(checkpoints: Checkpointer) -> list[str]:
    """What is in the directory once every lane has finished."""
    path = checkpoints._directory.path
    checkpoints.close()
    return sorted(entry.name for entry in path.iterdir())


def fail_once(checkpoints: Checkpointer, state: State, step: int) -> Checkpoint:
    """A checkpoint whose file cannot be synced."""
    _elastates.set_fault("fsync", error=errno.EIO)
    checkpoint = checkpoints.checkpoint(step, state)
    assert isinstance(checkpoint.durable.exception(60), CheckpointError)
    _elastates.clear_fault()
    return checkpoint


# ---- storage that fails

FAULTS = {
    # name: (operation, which, errno, what the message says, the error)
    "open": ("open", 1, errno.ENOSPC, r"creating .*\.tmp-step-00000001-\w+/rank-00000", StorageFullError),
    "fallocate": ("fallocate", 1, errno.ENOSPC, "reserving .*rank-00000", StorageFullError),
    "fallocate-quota": ("fallocate", 1, errno.EDQUOT, "reserving .*rank-00000", StorageFullError),
    "first-write": ("write", 1, errno.ENOSPC, "writing .*rank-00000", StorageFullError),
    "fourth-write": ("write", 4, errno.EIO, "writing .*rank-00000", CheckpointError),
    "write-quota": ("write", 2, errno.EDQUOT, "writing .*rank-00000", StorageFullError),
    "truncate": ("ftruncate", 1, errno.EIO, "truncating .*rank-00000", CheckpointError),
    "sync-file": ("fsync", 1, errno.EIO, "syncing .*rank-00000", CheckpointError),
    "close": ("close", 1, errno.EIO, "closing .*rank-00000", CheckpointError),
    "open-directory": ("open", 2, errno.EMFILE, r"directory .*\.tmp-step-00000001-", CheckpointError),
    "create-objects": ("small_open", 1, errno.EDQUOT, "creating .*rank-00000.objects.json", StorageFullError),
    "write-objects": ("small_write", 1, errno.ENOSPC, "writing .*rank-00000.objects.json", StorageFullError),
    "sync-objects": ("small_fsync", 1, errno.EIO, "syncing .*rank-00000.objects.json", CheckpointError),
    "write-manifest": ("small_write", 2, errno.ENOSPC, "writing .*manifest.json", StorageFullError),
    "sync-manifest": ("small_fsync", 2, errno.EIO, "syncing .*manifest.json", CheckpointError),
    "make-directory": ("mkdir", 1, errno.ENOSPC, r"making .*\.tmp-step-00000001-", CheckpointError),
    "sync-directory": ("fsync", 2, errno.EIO, r"syncing directory .*\.tmp-step-00000001-", CheckpointError),
    "rename": ("rename", 1, errno.EIO, r"renaming .*\.tmp-step-00000001-\w+ to .*step-00000001", CheckpointError),
    "sync-parent": ("fsync", 3, errno.EIO, r"syncing directory .*/run", CheckpointError),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_storage_fault_fails_one_checkpoint_and_leaves_nothing(
    fault: tuple[str, int, int, str, type[CheckpointError]],
    backend: str,
    open_checkpoints: Open,
    state: State,
    caplog: pytest.LogCaptureFixture,
) -> None:
    operation, nth, error, says, kind = fault
    checkpoints = open_checkpoints(**SMALL_ARENA, write_backend=backend)
    checkpoints.checkpoint(0, state).durable.result(60)

    _elastates.set_fault(operation, nth=nth, error=error)
    failed = checkpoints.checkpoint(1, state)
    train(state["model"], state["optimizer"])  # goes on
    with pytest.raises(kind, match=f"checkpoint of step 1 on rank 0: .*{says}.*{os.strerror(error)}"):
        failed.durable.result(60)
    assert _elastates.num_faults_struck() == 1
    assert checkpoints.steps() == [0]
    assert [r.levelno for r in caplog.records if "checkpoint of step 1 on rank 0" in r.message] == [logging.WARNING]

    expected = clones(state)
    assert_stored(checkpoints.checkpoint(1, state), expected)
    stats = checkpoints.stats()
    assert (stats.num_begun, stats.num_durable, stats.num_failed) == (3, 2, 1)
    assert entries(checkpoints) == [".lock", "step-00000000", "step-00000001"]


def test_a_failure_reaches_every_future_that_was_not_reached_before(
    open_checkpoints: Open, storage: HeldStorage, state: State
) -> None:
    storage.hold(opens_at_gate=False)
    checkpoint = open_checkpoints().checkpoint(0, state)
    assert checkpoint.safe_to_mutate.result(60) is None
    _elastates.set_fault("fsync", error=errno.EIO)  # releases
    for future in (checkpoint.written, checkpoint.durable):
        with pytest.raises(CheckpointError, match=r"step 0 on rank 0: .*Input/output error"):
            future.result(60)
    assert checkpoint.safe_to_mutate.result(0) is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("short_by", [1, 4096, 2**30])
def test_short_writes_are_continued_where_they_ended(
    short_by: int, backend: str, open_checkpoints: Open, state: State
) -> None:
    checkpoints = open_checkpoints(**SMALL_ARENA, write_backend=backend)
    _elastates.set_fault("write", times=40, short_by=short_by)
    assert_stored(checkpoints.checkpoint(0, state), clones(state))
    assert _elastates.num_faults_struck() >= 8


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operation", ["open", "fallocate", "write", "ftruncate", "fsync"])
def test_interrupted_calls_are_made_again(operation: str, backend: str, open_checkpoints: Open, state: State) -> None:
    checkpoints = open_checkpoints(**SMALL_ARENA, write_backend=backend)
    _elastates.set_fault(operation, times=3, error=errno.EINTR)
    assert_stored(checkpoints.checkpoint(0, state), clones(state))
    assert _elastates.num_faults_struck() >= 1


def test_of_two_in_flight_only_the_one_that_failed_is_lost(
    open_checkpoints: Open, storage: HeldStorage, state: State
) -> None:
    checkpoints = open_checkpoints(arena_mb=4, chunk_bytes=64 << 10)
    storage.hold(opens_at_gate=False)
    taken = [checkpoints.checkpoint(step, state) for step in range(2)]
    expected = clones(state)
    checkpoints.gate()
    _elastates.set_fault("fsync", error=errno.EIO)  # releases; which file is whole first, nobody knows
    (kept,) = (one for one in taken if one.durable.exception(60) is None)
    assert_stored(kept, expected)
    assert checkpoints.steps() == [kept.step]


def test_python_state_that_cannot_be_written_fails_the_checkpoint(
    open_checkpoints: Open, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpoints = open_checkpoints()
    with monkeypatch.context() as patch:
        patch.setattr("datastates.storage_ops.write_synced", full)
        failed = checkpoints.checkpoint(0, state)
        with pytest.raises(CheckpointError, match=r"step 0 on rank 0: .*No space left on device"):
            failed.durable.result(60)
    assert_stored(checkpoints.checkpoint(0, state), clones(state))
    assert entries(checkpoints) == [".lock", "step-00000000"]


@pytest.fixture
def two_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system with room for one checkpoint of 1.2 MB: a tmpfs where we may mount one, else a pretended one."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", path], capture_output=True).returncode == 0
    )
    if not mounted:
        monkeypatch.setattr(os, "statvfs", lambda _: pretended_statvfs(path, 2 << 20))
    yield path
    if mounted:
        subprocess.run(["umount", "--lazy", path], check=True)


def pretended_statvfs(path: Path, size_bytes: int) -> os.statvfs_result:
    used = sum(file.stat().st_size for file in path.rglob("*"))
    return os.statvfs_result([4096, 4096, size_bytes >> 12, *[(size_bytes - used) >> 12] * 2, 9, 9, 9, 0, 255])


def test_a_full_file_system_is_refused_before_anything_is_written(open_checkpoints: Open, two_megabytes: Path) -> None:
    model = wide_model()
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    checkpoints = open_checkpoints(two_megabytes)
    first = checkpoints.checkpoint(0, state).durable.result(60)

    _elastates.set_fault("write", error=errno.EIO)
    refused = checkpoints.checkpoint(1, state)
    with pytest.raises(
        StorageFullError, match=r"step 1 on rank 0: .*small has 1 MB free, the checkpoint takes 1 MB; free"
    ):
        refused.durable.result(60)
    assert _elastates.num_faults_struck() == 0
    _elastates.clear_fault()

    shutil.rmtree(first)
    assert_stored(checkpoints.checkpoint(1, state), cloned_module(model))
    assert entries(checkpoints) == [".lock", "step-00000001"]


# ---- what the user asked to hear


def test_warn_raises_only_by_the_futures(open_checkpoints: Open, state: State) -> None:
    checkpoints = open_checkpoints()
    fail_once(checkpoints, state, 0)
    checkpoints.gate()
    train(state["model"], state["optimizer"])
    checkpoints.wait()
    assert_stored(checkpoints.checkpoint(1, state), clones(state))
    checkpoints.close()


ENTRANCES: dict[str, Callable[[Checkpointer, State], object]] = {
    "checkpoint": lambda checkpoints, state: checkpoints.checkpoint(1, state),
    "gate": lambda checkpoints, state: checkpoints.gate(),
    "step": lambda checkpoints, state: train(state["model"], state["optimizer"]),
    "wait": lambda checkpoints, state: checkpoints.wait(),
    "close": lambda checkpoints, state: checkpoints.close(),
}


@pytest.mark.parametrize("enter", ENTRANCES.values(), ids=ENTRANCES.keys())
def test_raise_raises_once_at_the_next_call(
    enter: Callable[[Checkpointer, State], object], open_checkpoints: Open, state: State
) -> None:
    checkpoints = open_checkpoints(on_failure="raise")
    fail_once(checkpoints, state, 0)
    with pytest.raises(CheckpointError, match="checkpoint of step 0 on rank 0"):
        enter(checkpoints, state)
    checkpoints.gate()  # it has been told


@pytest.mark.parametrize("enter", ENTRANCES.values(), ids=ENTRANCES.keys())
def test_three_failures_in_a_row_are_never_quiet(
    enter: Callable[[Checkpointer, State], object], open_checkpoints: Open, state: State
) -> None:
    checkpoints = open_checkpoints(max_consecutive_failures=3)
    for step in range(3):
        fail_once(checkpoints, state, step)
    with pytest.raises(CheckpointError, match="3 checkpoints failed in a row; the last one: checkpoint of step 2"):
        enter(checkpoints, state)


def test_a_success_in_between_begins_the_count_anew(open_checkpoints: Open, state: State) -> None:
    checkpoints = open_checkpoints(max_consecutive_failures=2)
    for step in (0, 2, 4):
        fail_once(checkpoints, state, step)
        checkpoints.checkpoint(step + 1, state).durable.result(60)
    checkpoints.gate()
    assert checkpoints.stats().num_failed == 3


# ---- futures


def test_callbacks_are_called_once_with_the_future_before_and_after(
    open_checkpoints: Open, storage: HeldStorage, state: State
) -> None:
    checkpoints = open_checkpoints(**SMALL_ARENA)
    storage.hold(opens_at_gate=False)
    checkpoint = checkpoints.checkpoint(0, state)
    called: list[CheckpointFuture[Path]] = []
    both = threading.Barrier(2, timeout=60)
    checkpoint.durable.add_done_callback(called.append)
    checkpoint.durable.add_done_callback(lambda _: both.wait())
    assert called == []
    storage.release()
    both.wait()
    checkpoint.durable.add_done_callback(called.append)
    assert called == [checkpoint.durable, checkpoint.durable]


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit])
def test_a_callback_that_raises_harms_nobody(
    kind: type[BaseException], open_checkpoints: Open, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> None:
        raise kind("mine")

    checkpoints = open_checkpoints()
    first = checkpoints.checkpoint(0, state)
    for future in (first.safe_to_mutate, first.written, first.durable):
        future.add_done_callback(broken)
    assert_stored(checkpoints.checkpoint(1, state), clones(state))
    assert checkpoints.steps() == [0, 1]
    assert caplog.text.count(f"{kind.__name__}: mine") == 3


def test_futures_can_be_awaited(open_checkpoints: Open, storage: HeldStorage, state: State) -> None:
    checkpoints = open_checkpoints(**SMALL_ARENA)

    async def take() -> Path:
        storage.hold(opens_at_gate=False)
        checkpoint = checkpoints.checkpoint(0, state)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_awaited(checkpoint.durable), 0.01)
        storage.release()
        await checkpoint.safe_to_mutate
        return await checkpoint.durable  # in spite of the wait that was given up

    assert asyncio.run(take()) == checkpoints.latest()

    async def fail() -> None:
        _elastates.set_fault("fsync", error=errno.EIO)
        await checkpoints.checkpoint(1, state).durable

    with pytest.raises(CheckpointError, match="checkpoint of step 1"):
        asyncio.run(fail())


async def _awaited(future: CheckpointFuture[Path]) -> Path:
    return await future


def test_a_future_waits_no_longer_than_asked(open_checkpoints: Open, storage: HeldStorage, state: State) -> None:
    storage.hold(opens_at_gate=False)
    checkpoint = open_checkpoints(**SMALL_ARENA).checkpoint(0, state)
    for future in (checkpoint.written, checkpoint.durable):
        with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
            future.result(0.01)
        with pytest.raises(TimeoutError):
            future.exception(0)
    storage.release()
    assert checkpoint.durable.exception(60) is None


def test_a_mistake_of_ours_in_a_lane_fails_the_checkpoint_and_hangs_nobody(
    open_checkpoints: Open, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = open_checkpoints()
    with monkeypatch.context() as patch:
        patch.setattr(SavePipeline, "_explain", lambda *_: 1 / 0)
        _elastates.set_fault("write", error=errno.EIO)
        checkpoint = checkpoints.checkpoint(0, state)
        with pytest.raises(CheckpointError, match="step 0 on rank 0: ZeroDivisionError"):
            checkpoint.durable.result(60)
    assert_stored(checkpoints.checkpoint(1, state), clones(state))


# ---- beginning and end


def test_close_drains(open_checkpoints: Open, storage: HeldStorage, state: State) -> None:
    checkpoints = open_checkpoints(**SMALL_ARENA)
    storage.hold(opens_at_gate=False)
    taken = [checkpoints.checkpoint(step, state) for step in range(2)]
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(lambda: (checkpoints.close(), [c.durable.done() for c in taken], checkpoints.steps())[1:])
        storage.release()
        assert closing.result(60) == ([True, True], [0, 1])


def leave(tmp_path: Path, state: State, error: BaseException | None, fault: int = 0, **options: Any) -> None:
    """A context that takes one checkpoint and is left because of ``error``."""
    with Checkpointer(tmp_path, **options) as checkpoints:
        if fault:
            _elastates.set_fault("fsync", error=fault)
        checkpoints.checkpoint(0, state)
        if error is not None:
            raise error


@pytest.mark.parametrize("kind", [KeyError, KeyboardInterrupt])
def test_leaving_the_context_because_of_an_error_keeps_the_error_and_the_checkpoint(
    kind: type[BaseException], tmp_path: Path, state: State
) -> None:
    with pytest.raises(kind, match="mine"):
        leave(tmp_path, state, kind("mine"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "step-00000000"]


def test_a_failed_checkpoint_does_not_hide_the_error_that_left_the_context(
    tmp_path: Path, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyError, match="mine"):
        leave(tmp_path, state, KeyError("mine"), errno.EIO, on_failure="raise")
    assert "while leaving because of KeyError('mine')" in caplog.text


def test_leaving_the_context_raises_a_failure_that_is_due(tmp_path: Path, state: State) -> None:
    with pytest.raises(CheckpointError, match="step 0 on rank 0"):
        leave(tmp_path, state, None, errno.EIO, on_failure="raise")


def test_a_closed_checkpointer_refuses_work_and_gates_nobody(
    open_checkpoints: Open, storage: HeldStorage, state: State
) -> None:
    checkpoints = open_checkpoints()
    checkpoints.checkpoint(0, state)
    checkpoints.close()
    checkpoints.close()
    for act in (lambda: checkpoints.checkpoint(1, state), lambda: checkpoints.restore(state)):
        with pytest.raises(CheckpointError, match="this checkpointer is closed; make a new one"):
            act()
    storage.gates.clear()
    train(state["model"], state["optimizer"])
    checkpoints.gate()
    checkpoints.wait()
    assert storage.gates == []
    assert checkpoints.steps() == [0]
    assert checkpoints.stats().num_durable == 1


def test_a_published_step_is_refused_and_stays_as_it_is(open_checkpoints: Open, state: State) -> None:
    checkpoints = open_checkpoints()
    first, expected = checkpoints.checkpoint(4, state), clones(state)
    first.durable.result(60)
    train(state["model"], state["optimizer"])
    with pytest.raises(CheckpointError, match=r"step 4 is published already in .*run and nothing is ever overwritten"):
        checkpoints.checkpoint(4, state).durable.result(60)
    assert_stored(first, expected)
    assert entries(checkpoints) == [".lock", "step-00000004"]


BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "metadata": ({"metadata": {"made": object()}}, TypeError, "not JSON serializable"),
    "metadata-nan": ({"metadata": {"loss": float("nan")}}, ValueError, "not JSON compliant"),
    "step": ({"step": -1}, ValueError, "step is -1, expected an int >= 0"),
    "bool": ({"step": True}, ValueError, "step is True, expected an int >= 0"),
    "state": ({"state": [1]}, TypeError, "state is a list, expected a mapping"),
    "unknown": ({"state": {"thing": object()}}, TypeError, r"state\['thing'\] is a builtins.object, which no state"),
    "inside": ({"state": {"a": {"b": [object()]}}}, TypeError, r"a\.b\.0 is a builtins\.object"),
    "meta": ({"state": {"t": torch.empty(2, device="meta")}}, TypeError, "t is a torch.strided tensor .* on meta"),
}


@pytest.mark.parametrize(("wrong", "kind", "says"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_what_cannot_be_stored_is_refused_at_the_call_and_nothing_is_begun(
    wrong: dict[str, Any], kind: type[Exception], says: str, open_checkpoints: Open, state: State
) -> None:
    checkpoints = open_checkpoints()
    with pytest.raises(kind, match=says):
        checkpoints.checkpoint(**{"step": 0, "state": state, **wrong})
    assert checkpoints.stats().num_begun == 0
    assert_stored(checkpoints.checkpoint(0, state), clones(state))
    assert entries(checkpoints) == [".lock", "step-00000000"]
