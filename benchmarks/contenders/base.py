"""What the protocol asks of every checkpoint library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from benchmarks.workload import State

IO_THREADS = 2
"""Writer or copy threads given to every contender that lets one choose: the machine's cores."""


class Pending(ABC):
    """A save under way. Both waits may be called from any thread, and again."""

    @abstractmethod
    def wait_safe(self) -> None:
        """Return when the live tensors may be changed."""

    @abstractmethod
    def wait_durable(self) -> None:
        """Return when files, directories and the parent directory are synced."""


class Contender(ABC):
    """One library in its best documented settings. Life: open, then save / restore / discard in turn, then close.

    ``open`` may spend as long as it likes: processes and buffers are set up once per training job.
    """

    name: str

    def __init__(self, state: State, root: Path, arena_mb: int | None = None) -> None:
        self.state = state
        self.root = root
        self.arena_mb = arena_mb
        """Bound on the host memory that ours stages in; no peer can be told one."""

    @abstractmethod
    def open(self) -> None:
        """Set up. Raises ImportError, with a reason, where the library is not installed."""

    @abstractmethod
    def save(self, step: int) -> Pending:
        """Begin a checkpoint. The time until this returns is the training loop's."""

    @abstractmethod
    def restore(self, step: int) -> dict[str, Any]:
        """Load the tensors of ``step`` in place; returns its Python state."""

    @abstractmethod
    def path_of(self, step: int) -> Path:
        """Directory of one checkpoint."""

    @abstractmethod
    def close(self) -> None:
        """Release everything; the process goes on without a trace of the contender."""

    def settings(self) -> dict[str, Any]:
        """What was chosen, for the report."""
        return {}
