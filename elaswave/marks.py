"""Progress marks: a page of shared memory that the training thread writes and its agent reads. No torch in it.

The worker owns the page (a memfd that goes with it); the agent opens it by /proc and only looks. A mark is one
``pack_into`` of a few words, well below 2 microseconds, so it can stand in every step.

Layout, little-endian signed 64-bit words (nanoseconds are CLOCK_MONOTONIC, which is one clock for the whole host):
    0 magic    1 step    2 inside a step (0, 1)    3 marked at, ns    4 steps committed    5 depth of paused()
    6 began at, ns    7 own work of the step done at, ns; 0: not marked    8.. own times of the last steps, ns, a ring
and behind them 32 bytes: the name of what it is paused for.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import statistics
import struct
import time
from pathlib import Path

MAGIC = 0x656C6173_6D61726B
NUM_TIMES = 16
_HEAD = struct.Struct("<8q")
_WORD = struct.Struct("<q")
_NAME_BYTES = 32
_NAME_AT = _HEAD.size + NUM_TIMES * _WORD.size
SIZE_BYTES = _NAME_AT + _NAME_BYTES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marks:
    """What a page said at one moment. A torn read is possible, and harmless: a rank that writes is alive."""

    step: int
    is_inside: bool
    """between begin and commit"""
    marked_at_ns: int
    num_commits: int
    is_paused: bool
    paused_for: str
    """name of the last pause"""
    own_times_s: tuple[float, ...]
    """of the last steps, unordered"""

    @property
    def median_s(self) -> float:
        """Median own time of the last steps; 0 before the first."""
        return statistics.median(self.own_times_s) if self.own_times_s else 0.0


class MarkWriter:
    """The page of this process. One training thread marks; nobody else writes."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("elastates-marks", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, SIZE_BYTES)
        self._page = mmap.mmap(self.fd, SIZE_BYTES)
        self._step = self._num_commits = self._depth = self._began_ns = self._computed_ns = 0
        self._is_inside = 0
        self._write()

    def begin(self, step: int) -> None:
        """A step begins: from here to its commit silence counts."""
        self._step, self._is_inside, self._computed_ns = step, 1, 0
        self._began_ns = self._write()

    def computed(self, step: int) -> None:
        """This rank's own work of the step is done; what follows waits for others, and is not counted as its time."""
        self._step = step
        self._computed_ns = self._write()

    def commit(self, step: int) -> None:
        """The step is done."""
        self._step, self._is_inside = step, 0
        now_ns = time.monotonic_ns()
        if self._began_ns:
            own_ns = (self._computed_ns or now_ns) - self._began_ns
            _WORD.pack_into(self._page, _HEAD.size + self._num_commits % NUM_TIMES * _WORD.size, own_ns)
        self._num_commits += 1
        self._write()

    def alive(self) -> None:
        """A sign of life, wherever in the step."""
        self._write()

    def pause(self, name: str) -> None:
        """Silence does not count until ``resume``; may be nested."""
        self._page[_NAME_AT:] = name.encode()[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0")
        self._depth += 1
        self._write()

    def resume(self) -> None:
        """The end of a pause."""
        self._depth -= 1
        self._write()

    def _write(self) -> int:
        now_ns = time.monotonic_ns()
        _HEAD.pack_into(
            self._page,
            0,
            MAGIC,
            self._step,
            self._is_inside,
            now_ns,
            self._num_commits,
            self._depth,
            self._began_ns,
            self._computed_ns,
        )
        return now_ns


class MarkReader:
    """Another process's page."""

    def __init__(self, pid: int, fd: int) -> None:
        """Open descriptor ``fd`` of process ``pid``.

        Raises:
            ValueError: it is no such page.
        """
        try:
            with Path(f"/proc/{pid}/fd/{int(fd)}").open("rb") as file:
                self._page = mmap.mmap(file.fileno(), SIZE_BYTES, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise ValueError(f"descriptor {fd} of process {pid} is no page of progress marks: {error}") from error
        if _WORD.unpack_from(self._page)[0] != MAGIC:
            raise ValueError(f"descriptor {fd} of process {pid} is no page of progress marks: wrong magic number")

    def read(self) -> Marks:
        """What it says now."""
        _, step, is_inside, marked_at_ns, num_commits, depth, _, _ = _HEAD.unpack_from(self._page)
        own = struct.unpack_from(f"<{NUM_TIMES}q", self._page, _HEAD.size)[: min(num_commits, NUM_TIMES)]
        return Marks(
            step=step,
            is_inside=bool(is_inside),
            marked_at_ns=marked_at_ns,
            num_commits=num_commits,
            is_paused=depth > 0,
            paused_for=self._page[_NAME_AT:].rstrip(b"\0").decode(errors="replace"),
            own_times_s=tuple(time_ns / 1e9 for time_ns in own if time_ns > 0),
        )
