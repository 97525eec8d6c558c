"""What a rank hears from outside, and what it shows of itself."""

import os
import signal
from pathlib import Path


class StopSignals:
    """Remembers a SIGTERM or SIGUSR1; `run_steps` lets the ranks agree on the step after which they stop."""

    def __init__(self) -> None:
        self.received = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._remember)

    def _remember(self, _number: int, _frame: object) -> None:
        self.received = True


class PhaseMark:
    """A small file that says what this rank is doing, so that after a sudden death one knows where it was."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)

    def __call__(self, step: int, phase: str) -> None:
        os.pwrite(self._file, f"{step:>10} {phase:<10}\n".encode(), 0)  # one short write: never seen half
