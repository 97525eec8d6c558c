"""What tests of the checkpointer share."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from held_storage import HeldStorage

from datastates import Checkpointer, CheckpointError

import _elastates


@pytest.fixture(autouse=True)
def no_fault_outlives_its_test() -> Iterator[None]:
    """Injected faults are global: the next test must not meet this one's."""
    yield
    _elastates.clear_fault()


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldStorage]:
    """Storage that the test can hold; released when the test ends."""
    held = HeldStorage(monkeypatch)
    yield held
    held.release()


@pytest.fixture
def open_checkpoints(storage: HeldStorage, tmp_path: Path) -> Iterator[Callable[..., Checkpointer]]:
    """Make checkpointers of ``tmp_path / "run"`` that are closed when the test ends, whatever it held or broke."""
    opened: list[Checkpointer] = []

    def open_one(directory: Path | None = None, **options: Any) -> Checkpointer:
        opened.append(Checkpointer(directory or tmp_path / "run", **options))
        return opened[-1]

    yield open_one
    storage.release()
    for checkpoints in opened:
        with contextlib.suppress(CheckpointError):  # the test has looked at what failed
            checkpoints.close()
