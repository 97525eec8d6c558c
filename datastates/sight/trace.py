"""Recording a trace of the checkpoint path, for ui.perfetto.dev or chrome://tracing."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from datastates.sight.bus import add_sink, remove_sink
from datastates.sight.chrome_trace import CREDITS, NativeSlice, Recording, Sample, merged, to_json
from datastates.sight.events import Event, Failed, Published
from datastates.sight.sinks import file_of_rank
from datastates.sight.spans import PythonSlice, recorders

import _elastates

MAX_RECORDS = 2_000_000
"""Records kept in memory, some 100 bytes each; what comes later is dropped and counted."""


@contextmanager
def trace(path: str | os.PathLike[str]) -> Iterator[None]:
    """Record what all checkpointers of this process do inside the ``with``, and write it to ``path`` when it ends.

    JSON in Chrome's Trace Event Format, also if what is inside raises. Among several ranks each writes a file of its
    own, with ``-rank-00000`` in its name. What is still under way at the end is not in it: ``checkpoints.wait()``
    inside completes the picture.

    Raises:
        RuntimeError: a trace is being recorded already.
    """
    rank, num_ranks = (dist.get_rank(), dist.get_world_size()) if _distributed() else (0, 1)
    recorder = TraceRecorder(rank)
    recorder.start()
    try:
        yield
    finally:
        recorder.stop()
        _write_json(file_of_rank(path, rank, num_ranks), to_json(recorder.recording()))


def _distributed() -> bool:
    return bool(dist.is_available() and dist.is_initialized())


def merge_traces(paths: Iterable[str | os.PathLike[str]], out: str | os.PathLike[str]) -> None:
    """One file of the traces that several ranks have written, to see who waited for whom.

    Args:
        paths: of the ranks' files, in the order in which they are to be shown.
        out: where the result goes. Ranks lie as far apart as the wall clocks of their machines say.
    """
    _write_json(Path(out), merged([json.loads(Path(path).read_text()) for path in paths]))


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    """All of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(document, separators=(",", ":")))
    unfinished.replace(path)


class TraceRecorder:
    """Gathers Python spans as they end, and native records whenever a checkpoint does. Thread-safe."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._lock = threading.Lock()
        self._python: list[PythonSlice] = []
        self._native: list[NativeSlice] = []
        self._samples: list[Sample] = []
        self._steps: dict[int, int] = {}
        self._num_dropped = 0

    def start(self) -> None:
        """Begin recording.

        Raises:
            RuntimeError: somebody does already.
        """
        if not _elastates.trace_start():
            raise RuntimeError("a trace is being recorded already; end that one first")
        self._begin_unix_s, self._begin_ns = time.time(), time.monotonic_ns()
        recorders.append(self)
        add_sink(self._on_event)

    def stop(self) -> None:
        recorders.remove(self)
        remove_sink(self._on_event)
        _elastates.trace_stop()
        self._drain()

    def add(self, piece: PythonSlice) -> None:
        """For spans."""
        if len(self._python) < MAX_RECORDS:
            self._python.append(piece)
        else:
            self._num_dropped += 1

    def snapshot_is_of(self, snapshot_id: int, step: int) -> None:
        """For the pipeline: native records know snapshots, people know steps."""
        self._steps[snapshot_id] = step

    def _on_event(self, event: Event) -> None:
        """The native rings are bounded: they are drained once per checkpoint, not on the trainer's thread."""
        if isinstance(event, Published | Failed):
            self._drain()

    def _drain(self) -> None:
        with self._lock:
            for tid, thread_name, records, num_dropped in _elastates.trace_drain():
                room = max(0, MAX_RECORDS - len(self._native) - len(self._samples))
                self._num_dropped += num_dropped + max(0, len(records) - room)
                for record in itertools.islice(records, room):
                    self._keep(tid, thread_name, *record)

    def _keep(
        self,
        tid: int,
        thread_name: str,
        what: str,
        begin_ns: int,
        end_ns: int,
        snapshot: int,
        chunk: int,
        size_bytes: int,
    ) -> None:
        if what == CREDITS:
            self._samples.append(Sample(what=what, at_ns=begin_ns, value=size_bytes))
            return
        self._native.append(
            NativeSlice(
                tid=tid,
                thread_name=thread_name,
                what=what,
                begin_ns=begin_ns,
                end_ns=end_ns,
                step=self._steps.get(snapshot),
                snapshot=snapshot,
                chunk=chunk,
                size_bytes=size_bytes,
            )
        )

    def recording(self) -> Recording:
        """What was recorded, once stopped."""
        return Recording(
            pid=os.getpid(),
            process_name=f"rank {self._rank}",
            begin_ns=self._begin_ns,
            begin_unix_s=self._begin_unix_s,
            python=tuple(self._python),
            native=tuple(self._native),
            samples=tuple(self._samples),
            num_dropped=self._num_dropped,
        )
