"""What a process of a job goes through, and when: milestones as JSON lines, and a mark of the phase it is in.

Off, and free, unless the environment variable ELASWAVE_TIMELINE names a directory. There every process writes two
files, named after its pid and what started it: ``PID.timeline.jsonl`` and ``PID.phase``, the latter one short line that
is overwritten in place, so that a chaos script can strike during a named phase. Times are those of the monotonic
clock, which all processes of a machine share.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

VARIABLE: Final = "ELASWAVE_TIMELINE"
PHASE_BYTES: Final = 64
MILESTONES: Final = ("loss", "revoked", "agreed", "edited", "committed")
"""Of a recovery, in their order."""


class Timeline:
    """The two files of this process."""

    def __init__(self, directory: Path, pid: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._lines = open(directory / f"{pid}.timeline.jsonl", "a", buffering=1)  # noqa: SIM115 (lives with the process)
        with open(directory / f"{pid}.phase", "w+b") as file:
            file.truncate(PHASE_BYTES)
            self._mark = mmap.mmap(file.fileno(), PHASE_BYTES)
        self.enter("outside")

    def note(self, what: str, at_s: float, **fields: Any) -> None:
        """Write a milestone down; whole, or not at all."""
        self._lines.write(json.dumps({"at_s": at_s, "what": what, **fields}) + "\n")

    def enter(self, phase: str) -> str:
        """Say what the process is doing now; returns what it did before."""
        before = self._mark[:].split(b"\n", 1)[0].decode()
        self._mark[:] = phase.encode()[: PHASE_BYTES - 1].ljust(PHASE_BYTES, b"\n")
        return before


_timeline: tuple[int, Timeline | None] | None = None


def _current() -> Timeline | None:
    global _timeline
    pid = os.getpid()
    if _timeline is None or _timeline[0] != pid:  # also after a fork: the child has files of its own
        directory = os.environ.get(VARIABLE)
        _timeline = pid, Timeline(Path(directory), pid) if directory else None
    return _timeline[1]


def note(what: str, at_s: float | None = None, **fields: Any) -> None:
    """Write a milestone down, reached now or at ``at_s`` of the monotonic clock."""
    timeline = _current()
    if timeline is not None:
        timeline.note(what, time.monotonic() if at_s is None else at_s, **fields)


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """What happens inside is the phase ``name``; phases nest."""
    timeline = _current()
    if timeline is None:
        yield
        return
    before = timeline.enter(name)
    try:
        yield
    finally:
        timeline.enter(before)


def read_phase(path: Path) -> str:
    """The phase that a process is in, from its ``.phase`` file; empty if it has none."""
    try:
        return path.read_bytes().split(b"\n", 1)[0].decode()
    except FileNotFoundError:
        return ""


def read_milestones(path: Path) -> list[dict[str, Any]]:
    """All milestones of a process; the last line of one that was killed may be half: it is left out."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]
