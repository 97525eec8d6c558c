"""Spans: what Python threads did and when, for a trace while one is recorded; else one truth test."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class PythonSlice:
    """Times as ``time.monotonic_ns()``."""

    tid: int
    thread_name: str
    what: str
    begin_ns: int
    end_ns: int
    step: int | None
    args: Mapping[str, Any]


class Recorder(Protocol):
    """Who records a trace."""

    def add(self, piece: PythonSlice) -> None: ...
    def snapshot_is_of(self, snapshot_id: int, step: int) -> None: ...


recorders: list[Recorder] = []
"""The one who records, or nobody. One list for ever."""
_NOTHING = nullcontext()


def span(what: str, step: int | None = None) -> AbstractContextManager[None]:
    """A slice of the current thread's track, around what happens inside."""
    return _Span(what, step) if recorders else _NOTHING


def record(what: str, begin_ns: int, step: int | None = None, **args: Any) -> None:
    """A slice of the current thread's track, from ``begin_ns`` to now."""
    end_ns = time.monotonic_ns()
    thread = threading.current_thread()
    for recorder in list(recorders):
        recorder.add(
            PythonSlice(
                tid=threading.get_native_id(),
                thread_name=thread.name,
                what=what,
                begin_ns=begin_ns,
                end_ns=end_ns,
                step=step,
                args=args,
            )
        )


def snapshot_is_of(snapshot_id: int, step: int) -> None:
    """Say which step the native snapshot belongs to."""
    for recorder in list(recorders):
        recorder.snapshot_is_of(snapshot_id, step)


class _Span:
    def __init__(self, what: str, step: int | None) -> None:
        self._what = what
        self._step = step

    def __enter__(self) -> None:
        self._begin_ns = time.monotonic_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        record(self._what, self._begin_ns, self._step, **({"error": repr(error)} if error else {}))
