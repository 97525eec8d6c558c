"""The directory: one writer, nothing overwritten, leftovers cleared, and never without a checkpoint to go back to."""

import errno
import os
import re
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from launching import Launcher

from datastates import DirectoryBusyError
from datastates.directory import (
    CheckpointDirectory,
    data_file_name,
    expired,
    objects_file_name,
    step_name,
)
from datastates.storage_ops import write_synced


@pytest.fixture
def directory(tmp_path: Path) -> CheckpointDirectory:
    (tmp_path / "runs").mkdir()
    return CheckpointDirectory(tmp_path / "runs")


def publish(directory: CheckpointDirectory, step: int, content: bytes = b"x", damaged: set[int] | None = None) -> Path:
    attempt = directory.begin(step)
    write_synced(attempt / "file", content)
    return directory.publish(attempt, step, damaged or set())


def names(directory: CheckpointDirectory) -> list[str]:
    return sorted(entry.name for entry in directory.path.iterdir())


def test_names_sort_like_steps() -> None:
    assert step_name(12) == "step-00000012"
    assert step_name(123_456_789) == "step-123456789"
    assert (data_file_name(3), objects_file_name(3)) == ("rank-00003.safetensors", "rank-00003.objects.json")


def test_a_lock_that_the_file_system_refuses_leaves_no_descriptor(
    directory: CheckpointDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match="No locks available"):
        directory.lock()
    opened = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    assert str(directory.path / ".lock") not in opened


def test_steps_are_what_was_published_and_nothing_else(directory: CheckpointDirectory) -> None:
    for step in (10, 2, 100_000_000):
        publish(directory, step)
    directory.begin(11)
    for name in ("damaged-step-00000003-0d0d0d0d", ".old-step-00000001-00000000", "step-7", "notes"):
        (directory.path / name).mkdir()
    assert directory.steps() == [2, 10, 100_000_000]


def test_a_directory_that_is_not_there_has_no_steps(tmp_path: Path) -> None:
    assert CheckpointDirectory(tmp_path / "none").steps() == []


def test_publishing_makes_the_whole_attempt_visible_under_its_name(directory: CheckpointDirectory) -> None:
    final = publish(directory, 3, b"content")
    assert final == directory.of_step(3)
    assert names(directory) == ["step-00000003"]
    assert (final / "file").read_bytes() == b"content"


@pytest.mark.parametrize("other", [4, None], ids=["another is damaged", "none is damaged"])
def test_publishing_never_overwrites(directory: CheckpointDirectory, other: int | None) -> None:
    publish(directory, 3, b"first")
    with pytest.raises(FileExistsError, match=r"step-00000003 is published already.*remove it, or use another"):
        publish(directory, 3, b"second", {other} if other else set())
    assert (directory.of_step(3) / "file").read_bytes() == b"first"


def test_publishing_does_not_replace_even_an_empty_directory(directory: CheckpointDirectory) -> None:
    directory.of_step(3).mkdir()  # rename(2) would replace it silently
    with pytest.raises(FileExistsError, match="published already"):
        publish(directory, 3)
    assert list(directory.of_step(3).iterdir()) == []


def test_a_step_known_to_be_damaged_makes_way_and_is_kept(directory: CheckpointDirectory) -> None:
    publish(directory, 3, b"damaged")
    publish(directory, 3, b"whole", {3})
    aside, final = names(directory)
    assert re.fullmatch(r"damaged-step-00000003-[0-9a-f]{8}", aside)
    assert (directory.path / aside / "file").read_bytes() == b"damaged"
    assert (directory.path / final / "file").read_bytes() == b"whole"


def test_attempts_of_one_step_do_not_meet(directory: CheckpointDirectory) -> None:
    assert directory.begin(3) != directory.begin(3)


def test_writing_does_not_replace_a_file(tmp_path: Path) -> None:
    write_synced(tmp_path / "a", b"1" * 100_000)
    assert (tmp_path / "a").read_bytes() == b"1" * 100_000
    with pytest.raises(FileExistsError):
        write_synced(tmp_path / "a", b"2")


def test_removing_leaves_the_others(directory: CheckpointDirectory) -> None:
    for step in (1, 2, 3):
        publish(directory, step)
    directory.remove([1, 3])
    assert names(directory) == ["step-00000002"]


LOCK_AND_STAY = """
import signal, sys
from datastates.directory import CheckpointDirectory
directory = CheckpointDirectory(sys.argv[1])
directory.lock()
print("locked", flush=True)
signal.pause()
"""


def test_a_second_process_is_refused_and_told_by_whom(directory: CheckpointDirectory, launch: Launcher) -> None:
    other = launch([sys.executable, "-P", "-c", LOCK_AND_STAY, directory.path])
    other.wait_for("locked")
    said = rf"{re.escape(str(directory.path))} is being written by {re.escape(socket.gethostname())} pid {other.pid}; "
    with pytest.raises(DirectoryBusyError, match=said + "end that job, or give this one another directory"):
        directory.lock()
    other.kill()
    directory.lock()
    directory.unlock()


def test_a_second_writer_in_this_process_is_refused_too(directory: CheckpointDirectory) -> None:
    directory.lock()
    directory.lock()  # again by the holder: nothing happens
    second = CheckpointDirectory(directory.path)
    with pytest.raises(DirectoryBusyError, match=f"pid {os.getpid()}"):
        second.lock()
    directory.unlock()
    second.lock()
    second.unlock()


def test_locking_clears_what_dead_writers_left_and_only_that(directory: CheckpointDirectory) -> None:
    publish(directory, 1)
    write_synced(directory.begin(2) / "file", b"half")
    (directory.path / ".old-step-00000000-0123abcd").mkdir()
    (directory.path / (".nonce-" + "0" * 32)).write_bytes(b"")
    kept = ["damaged-step-00000003-0d0d0d0d", ".tmp-mine", "notes", ".old-step-x"]
    for name in kept:
        (directory.path / name).mkdir()
    directory.lock()
    assert names(directory) == sorted([*kept, ".lock", "step-00000001"])
    directory.unlock()


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "gone"),
    [
        (3, None, [1, 2, 3, 4, 5]),
        (1, None, [1, 2, 3, 4, 5, 6, 7]),
        (20, None, []),
        (None, None, []),
        (None, 2, []),
        (2, 3, [1, 2, 4, 5]),
        (1, 1, []),
    ],
)
def test_retention_keeps_the_last_and_every_kth(keep_last: int | None, keep_every: int | None, gone: list[int]) -> None:
    assert expired([5, 1, 2, 3, 4, 6, 7, 8], keep_last, keep_every) == gone


@given(st.sets(st.integers(0, 10**9), min_size=1), st.none() | st.integers(1, 5), st.none() | st.integers(1, 5))
def test_retention_never_takes_the_newest(steps: set[int], keep_last: int | None, keep_every: int | None) -> None:
    gone = expired(list(steps), keep_last, keep_every)
    assert max(steps) not in gone
    assert set(gone) <= steps
    assert len(steps) - len(gone) >= min(len(steps), keep_last or len(steps))
