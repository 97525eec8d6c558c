"""What this machine can do at best, measured with nothing of ours: plain writes, plain cold reads, memcpy.

Each is the plainest program that reaches the hardware: a checkpoint engine is judged against it, not against a data
sheet. The probe's file is as large as the checkpoint, so that caches and the file system see the same work.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.files import evict_file, fsync_path
from benchmarks.machine import MB

REQUEST_BYTES = 16 << 20
ALIGNMENT = 4096


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """One measurement of the three limits."""

    write_mb_s: float
    """O_DIRECT sequential write + fsync of file and directory, one thread."""
    read_mb_s: float
    """Cold O_DIRECT read, the better of one and two threads with one request in flight each."""
    read_threads: int
    memcpy_gb_s: float
    direct: bool
    """False where the file system refused O_DIRECT: then buffered, with the page cache dropped before reads."""


def measure(directory: Path, size_bytes: int, copy_threads: int) -> Ceiling:
    """Run all three probes once; leaves nothing in ``directory``."""
    path = directory / "ceiling.bin"
    try:
        write_s, direct = write_seconds(path, size_bytes)
        fastest_s, threads = min((read_seconds(path, threads), threads) for threads in (1, 2))
        file_bytes = path.stat().st_size
    finally:
        path.unlink(missing_ok=True)
        os.sync()
    return Ceiling(
        write_mb_s=file_bytes / write_s / MB,
        read_mb_s=file_bytes / fastest_s / MB,
        read_threads=threads,
        memcpy_gb_s=size_bytes / memcpy_seconds(size_bytes, copy_threads) / 1e9,
        direct=direct,
    )


def write_seconds(path: Path, size_bytes: int) -> tuple[float, bool]:
    """Seconds from open to durable, and whether O_DIRECT was taken. The file is rounded up to ALIGNMENT."""
    source = _random_buffer()
    try:
        return _timed(lambda: _write(path, size_bytes, source, os.O_DIRECT)), True
    except OSError:
        path.unlink(missing_ok=True)
        return _timed(lambda: _write(path, size_bytes, source, 0)), False


def read_seconds(path: Path, num_threads: int) -> float:
    """Seconds to read the whole file cold, each thread one contiguous part, one request in flight per thread."""
    evict_file(path)
    file_bytes = path.stat().st_size
    part_bytes = _round_up(-(-file_bytes // num_threads))
    starts = range(0, file_bytes, part_bytes)
    buffers = [_random_buffer() for _ in starts]

    def read_parts() -> None:
        with ThreadPoolExecutor(num_threads) as pool:
            parts = zip(starts, buffers, strict=True)
            for part in [pool.submit(_read, path, at, min(file_bytes, at + part_bytes), into) for at, into in parts]:
                part.result()

    return _timed(read_parts)


def memcpy_seconds(size_bytes: int, num_threads: int) -> float:
    """Seconds to copy ``size_bytes`` between two touched buffers with ``num_threads`` threads."""
    source, target = mmap.mmap(-1, size_bytes), mmap.mmap(-1, size_bytes)
    starts = range(0, size_bytes, -(-size_bytes // num_threads))
    copies = [(start, min(size_bytes, start + starts.step) - start) for start in starts]
    source_view, target_view = _view(source), _view(target)
    source_at, target_at = ctypes.addressof(source_view), ctypes.addressof(target_view)
    ctypes.memset(source_at, 1, size_bytes)
    ctypes.memset(target_at, 2, size_bytes)
    try:
        with ThreadPoolExecutor(num_threads) as pool:

            def copy_all() -> None:
                # ctypes gives up the GIL for the call, so the copies run side by side.
                for copy in [pool.submit(ctypes.memmove, target_at + at, source_at + at, n) for at, n in copies]:
                    copy.result()

            return _timed(copy_all)
    finally:
        del source_view, target_view
        source.close()
        target.close()


def _write(path: Path, size_bytes: int, source: mmap.mmap, flags: int) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | flags, 0o600)
    try:
        left = _round_up(size_bytes)
        with memoryview(source) as view:
            while left:
                left -= os.write(descriptor, view[: min(left, REQUEST_BYTES)])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fsync_path(path.parent)


def _read(path: Path, begin: int, end: int, into: mmap.mmap) -> None:
    descriptor = _open_for_read(path)
    try:
        at = begin
        with memoryview(into) as view:
            while at < end:
                count = os.preadv(descriptor, [view[: min(REQUEST_BYTES, _round_up(end - at))]], at)
                if count == 0:
                    raise OSError(f"{path}: ends at {at}, expected {end} bytes")
                at += count
    finally:
        os.close(descriptor)


def _open_for_read(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return os.open(path, os.O_RDONLY)


def _random_buffer() -> mmap.mmap:
    # Random, because a disk or hypervisor may treat zeros better than a checkpoint.
    buffer = mmap.mmap(-1, REQUEST_BYTES)
    buffer.write(os.urandom(REQUEST_BYTES))
    return buffer


def _view(buffer: mmap.mmap) -> ctypes.Array[ctypes.c_char]:
    return (ctypes.c_char * len(buffer)).from_buffer(buffer)


def _round_up(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


def _timed(work: Callable[[], None]) -> float:
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s
