"""Chrome's Trace Event Format, which ui.perfetto.dev opens: pure functions from what was recorded to JSON values.

Tracks, from top to bottom: the trainer's thread, the planning lane, the engine's actors in the order of the chain,
the lanes that see copies and files end, publishing. Asynchronous writes overlap, so they are laid on as many lanes
as were in flight at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datastates.sight.spans import PythonSlice

WRITE_LANE_TID = 1 << 24
"""Beyond every thread id of Linux: lanes of asynchronous writes have no thread of their own."""
CREDITS = "free blocks"
_ORDER = ("checkpoint()", "gate", "restore()", "plan", "capture", "copy", "checksum", "write", "open", "seal", "sync")
_ORDER_BEHIND = ("see copied", "see written", "publish")
_TRACK_OF = {
    "starved": "capture",
    "agree": "plan",
    "allocate the arena": "plan",
    "write Python state": "plan",
    "prune": "publish",
    "gather digests": "publish",
    "manifest and rename": "publish",
    "hear the outcome": "publish",
    "read the manifest": "restore()",
    "match names": "restore()",
    "load tensors": "restore()",
    "take Python values back": "restore()",
}
_FLOW = ("checkpoint()", "plan", "see copied", "see written", "publish")


@dataclass(frozen=True, kw_only=True)
class NativeSlice:
    """A record of the native trace; times as ``time.monotonic_ns()``."""

    tid: int
    thread_name: str
    what: str
    begin_ns: int
    end_ns: int
    step: int | None
    snapshot: int
    chunk: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A counter's value."""

    what: str
    at_ns: int
    value: int


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Everything that was recorded."""

    pid: int
    process_name: str
    begin_ns: int
    begin_unix_s: float
    python: Sequence[PythonSlice]
    native: Sequence[NativeSlice]
    samples: Sequence[Sample]
    num_dropped: int


def to_json(recording: Recording) -> dict[str, Any]:
    """The whole file."""
    events = [*_named_tracks(recording), *_slices(recording), *_counters(recording), *_flows(recording)]
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"begin_unix_s": recording.begin_unix_s, "records_dropped": recording.num_dropped},
    }


def merged(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Traces of several ranks as one, on the clock of the first: as far apart as their machines' wall clocks say.

    Processes and flows of different documents are kept apart, whatever their numbers.
    """
    begun_unix_s = [document["otherData"]["begin_unix_s"] for document in documents]
    events = []
    for index, document in enumerate(documents):
        later_us = (begun_unix_s[index] - begun_unix_s[0]) * 1e6
        for event in document["traceEvents"]:
            moved = {**event, "pid": index}
            if "ts" in event:
                moved["ts"] = event["ts"] + later_us
            if "id" in event:
                moved["id"] = f"{index}/{event['id']}"
            events.append(moved)
    dropped = sum(document["otherData"]["records_dropped"] for document in documents)
    other = {"begin_unix_s": begun_unix_s[0], "records_dropped": dropped}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": other}


def lay_out(writes: Iterable[NativeSlice]) -> list[tuple[int, NativeSlice]]:
    """Give overlapping slices lanes 0, 1, ...: each the lowest that is free when it begins."""
    free: list[int] = []
    busy: list[tuple[int, int]] = []  # (end_ns, lane)
    laid = []
    for piece in sorted(writes, key=lambda piece: (piece.begin_ns, piece.end_ns)):
        while busy and busy[0][0] <= piece.begin_ns:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (piece.end_ns, lane))
        laid.append((lane, piece))
    return laid


def _native_tracks(recording: Recording) -> Iterator[tuple[int, NativeSlice]]:
    """(track id, slice)."""
    yield from ((piece.tid, piece) for piece in recording.native if piece.what != "write")
    writes = (piece for piece in recording.native if piece.what == "write")
    yield from ((WRITE_LANE_TID + lane, piece) for lane, piece in lay_out(writes))


def _slices(recording: Recording) -> Iterator[dict[str, Any]]:
    for piece in recording.python:
        args = {} if piece.step is None else {"step": piece.step}
        yield _slice(recording, piece.tid, piece, {**args, **piece.args})
    for tid, part in _native_tracks(recording):
        yield _slice(recording, tid, part, _args(part))


def _slice(recording: Recording, tid: int, piece: PythonSlice | NativeSlice, args: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "ph": "X",
        "cat": "checkpoint",
        "name": piece.what,
        "pid": recording.pid,
        "tid": tid,
        "ts": _us(recording, piece.begin_ns),
        "dur": (piece.end_ns - piece.begin_ns) / 1000,
        "args": args,
    }


def _args(piece: NativeSlice) -> dict[str, Any]:
    """``open`` and ``sync`` are about a whole file, ``seal`` is about no bytes."""
    args: dict[str, Any] = {"step": piece.step, "snapshot": piece.snapshot}
    if piece.what not in ("open", "sync"):
        args["chunk"] = piece.chunk
    if piece.what not in ("seal", "starved"):
        args["bytes"] = piece.size_bytes
    return args


def _counters(recording: Recording) -> Iterator[dict[str, Any]]:
    for sample in sorted(recording.samples, key=lambda sample: sample.at_ns):
        ts = _us(recording, sample.at_ns)
        args = {sample.what: sample.value}
        yield {"ph": "C", "name": f"arena: {sample.what}", "pid": recording.pid, "ts": ts, "args": args}


def _flows(recording: Recording) -> Iterator[dict[str, Any]]:
    """An arrow from every ``checkpoint()`` through the lanes to where it became durable."""
    stops: dict[int, list[PythonSlice]] = {}
    for piece in recording.python:
        if piece.step is not None and piece.what in _FLOW:
            stops.setdefault(piece.step, []).append(piece)
    for step, pieces in stops.items():
        pieces.sort(key=lambda piece: piece.begin_ns)
        if len(pieces) < 2 or pieces[0].what != _FLOW[0]:
            continue  # it was under way when the recording began
        for index, piece in enumerate(pieces):
            last = index == len(pieces) - 1
            arrow = {"ph": "f", "bp": "e"} if last else {"ph": "s" if index == 0 else "t"}
            place = {"pid": recording.pid, "tid": piece.tid, "ts": _us(recording, piece.begin_ns)}
            yield {**arrow, "cat": "checkpoint", "name": f"step {step}", "id": step, **place}


def _named_tracks(recording: Recording) -> Iterator[dict[str, Any]]:
    yield _metadata(recording, 0, "process_name", {"name": recording.process_name})
    tracks: dict[int, tuple[int, str]] = {}
    for tid, what, thread_name in _appearances(recording):
        shown = _TRACK_OF.get(what, what)
        order = [*_ORDER, *_ORDER_BEHIND].index(shown) if shown in (*_ORDER, *_ORDER_BEHIND) else len(_ORDER)
        name = f"write {tid - WRITE_LANE_TID}" if tid >= WRITE_LANE_TID else _track_name(shown, thread_name)
        tracks[tid] = min(tracks.get(tid, (order, name)), (order, name))
    for tid, (order, name) in tracks.items():
        yield _metadata(recording, tid, "thread_name", {"name": name})
        yield _metadata(recording, tid, "thread_sort_index", {"sort_index": order})


def _appearances(recording: Recording) -> Iterator[tuple[int, str, str]]:
    yield from ((piece.tid, piece.what, piece.thread_name) for piece in recording.python)
    yield from ((tid, piece.what, piece.thread_name) for tid, piece in _native_tracks(recording))


def _track_name(what: str, thread_name: str) -> str:
    if what in ("checkpoint()", "gate", "restore()"):
        return f"trainer ({thread_name})"
    return thread_name.removeprefix("ds-") if what == "copy" else f"{what} ({thread_name})"


def _metadata(recording: Recording, tid: int, what: str, args: Mapping[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": recording.pid, "tid": tid, "args": args}


def _us(recording: Recording, at_ns: int) -> float:
    return (at_ns - recording.begin_ns) / 1000
