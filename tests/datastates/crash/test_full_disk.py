"""Real file systems that run full: small ones of this test's own, in memory and on a loop device."""

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from datastates import Checkpointer, StorageFullError, open_checkpoint
from datastates.saving import SavePipeline

import _elastates

SIZE_BYTES = 4 << 20
CHECKPOINT_BYTES = 1 << 20
NEEDS_ROOT = "mounting needs root: run the tests as root, or in `unshare --map-root-user --mount`"


def mount(*command: str | Path) -> bool:
    return subprocess.run(["mount", *command], capture_output=True, check=False).returncode == 0


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """An empty file system of about 4 MB."""
    path = tmp_path / "small"
    path.mkdir()
    if request.param == "tmpfs":
        mounted = mount("-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "none", path)
    else:
        image = tmp_path / "image"
        image.write_bytes(bytes(SIZE_BYTES))
        made = subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image], check=False)
        mounted = made.returncode == 0 and mount("-o", "loop", image, path)
    if not mounted:
        pytest.skip(NEEDS_ROOT)
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def state(step: int) -> dict[str, torch.Tensor]:
    return {"values": torch.full((CHECKPOINT_BYTES // 4,), float(step))}


def leave_free(disk: Path, num_bytes: int) -> None:
    """Fill the disk up to that, roughly: file systems count blocks, and keep some for themselves."""
    (disk / "filler").unlink(missing_ok=True)
    stat = os.statvfs(disk)
    size = stat.f_bavail * stat.f_frsize - num_bytes
    with open(disk / "filler", "wb") as filler, contextlib.suppress(OSError):
        for begin in range(0, size, 4096):
            os.pwrite(filler.fileno(), bytes(4096), begin)


@pytest.mark.mounts
@pytest.mark.parametrize("reserves", [True, False], ids=["reserved", "not reserved"])
def test_a_full_disk_costs_that_checkpoint_alone(
    small_disk: Path, reserves: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With any room left, a checkpoint succeeds or fails whole; the one before stays, and the next one succeeds."""
    monkeypatch.setattr(SavePipeline, "_check_space", lambda *_: None)  # another job may fill it a moment later
    run, outcomes = small_disk / "run", set()
    with Checkpointer(run, keep_last=1, chunk_bytes=64 << 10, arena_mb=2, max_consecutive_failures=99) as checkpoints:
        checkpoints.checkpoint(0, state(0)).durable.result(60)
        for step, room in enumerate([0, 4 << 10, 64 << 10, 700 << 10, 1 << 20, (1 << 20) + (12 << 10)], start=1):
            leave_free(small_disk, room)
            if not reserves:
                _elastates.set_fault("fallocate", times=99, error=errno.EOPNOTSUPP)
            error = checkpoints.checkpoint(step, state(step)).durable.exception(60)
            outcomes.add(type(error))
            assert error is None or isinstance(error, StorageFullError), error
            newest = open_checkpoint(run)
            assert newest.verify() == []
            assert newest.read("values")[0] == newest.manifest.step == max(checkpoints.steps())
        (small_disk / "filler").unlink()
        checkpoints.checkpoint(99, state(99)).durable.result(60)
    assert StorageFullError in outcomes
    assert sorted(path.name for path in run.iterdir()) == [".lock", "step-00000099"]
    assert "No space left on device" in caplog.text
