"""Peak memory of this process and its children, as the machine would have to provide it."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from pathlib import Path
from types import TracebackType

from benchmarks.machine import MB

SAMPLE_PERIOD_S = 0.005


class PeakMemory:
    """Context manager: how far resident memory rose above its level at entry.

    Counts anonymous pages of the whole process tree plus the largest share of shared memory that one of its processes
    maps: a staging buffer mapped by trainer and writer process exists once. Page cache is the kernel's and not counted.
    """

    def __init__(self) -> None:
        self.peak_extra_mb = 0.0
        self.samples = 0
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="bench-memory")

    def __enter__(self) -> PeakMemory:
        settle()
        self._level_bytes = resident_bytes()
        self._peak_bytes = self._level_bytes
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._sampler.join()
        self.peak_extra_mb = (self._peak_bytes - self._level_bytes) / MB

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_PERIOD_S):
            self._peak_bytes = max(self._peak_bytes, resident_bytes())
            self.samples += 1


def settle() -> None:
    """Return freed heap to the system, which would otherwise hide what is allocated next."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Anonymous memory of the process tree, and its shared memory once."""
    anonymous, shared = zip(*(_anonymous_and_shared_bytes(pid) for pid in _process_tree(os.getpid())), strict=True)
    return sum(anonymous) + max(shared)


def _process_tree(pid: int) -> list[int]:
    pids = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in _read_or_empty(task).split():
            pids += _process_tree(int(child))
    return pids


def _anonymous_and_shared_bytes(pid: int) -> tuple[int, int]:
    sizes = {}
    for line in _read_or_empty(Path(f"/proc/{pid}/status")).splitlines():
        name, _, value = line.partition(":")
        if name in ("RssAnon", "RssShmem"):
            sizes[name] = int(value.split()[0]) * 1024
    return sizes.get("RssAnon", 0), sizes.get("RssShmem", 0)


def _read_or_empty(path: Path) -> str:
    # A process or thread may end between being listed and being read: then it uses no memory.
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
