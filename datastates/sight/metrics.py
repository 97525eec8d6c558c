"""Metrics: counters, gauges and histograms of all checkpointers of this process, as Prometheus understands them.

A sink that counts events. Nothing is counted before somebody asks for metrics. Every sample is labelled with the
checkpointer's directory and the rank.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from datastates.sight import events
from datastates.sight.events import Event, Origin
from datastates.sight.observed import observed

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[tuple[str, str], ...]
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of every histogram, seconds; the last bucket, without one, is implied."""

DESCRIBED: Mapping[str, tuple[Kind, str]] = {
    "datastates_checkpoints_begun_total": ("counter", "Calls of checkpoint()."),
    "datastates_checkpoints_durable_total": ("counter", "Checkpoints published on all ranks."),
    "datastates_checkpoints_failed_total": ("counter", "Checkpoints that will not be published."),
    "datastates_checkpoints_skipped_total": ("counter", "Checkpoints left out for lack of arena room."),
    "datastates_checkpoints_pruned_total": ("counter", "Checkpoints that retention removed."),
    "datastates_published_bytes_total": ("counter", "Data files of published checkpoints, all ranks."),
    "datastates_copied_bytes_total": ("counter", "Bytes of this rank that were copied."),
    "datastates_written_bytes_total": ("counter", "Bytes of this rank that were written and synced."),
    "datastates_gate_wait_cause_seconds_total": ("counter", "Time training waited at gates, by cause."),
    "datastates_gate_wait_seconds": ("histogram", "Waits of training at gates."),
    "datastates_call_seconds": ("histogram", "Time inside checkpoint()."),
    "datastates_stall_seconds": ("histogram", "Per checkpoint: time inside checkpoint() and at its gates."),
    "datastates_durable_seconds": ("histogram", "From checkpoint() to published."),
    "datastates_last_durable_step": ("gauge", "Step of the newest checkpoint published by this process."),
    "datastates_last_durable_timestamp_seconds": ("gauge", "When it was published, Unix time."),
    "datastates_arena_bytes": ("gauge", "Size of the arena."),
    "datastates_arena_used_bytes": ("gauge", "Bytes of the arena that wait for storage."),
    "datastates_restores_total": ("counter", "Calls of restore(), by outcome."),
    "datastates_restore_seconds": ("histogram", "Time inside restore()."),
    "datastates_damaged_checkpoints_total": ("counter", "Checkpoints found damaged."),
    "datastates_replicated_total": ("counter", "Checkpoints copied to another tier."),
    "datastates_replicated_bytes_total": ("counter", "Bytes copied to another tier."),
    "datastates_replications_failed_total": ("counter", "Copies to another tier that were given up."),
}


@dataclass(frozen=True)
class HistogramValue:
    """What a histogram has seen."""

    counts: tuple[int, ...] = (0,) * (len(BUCKETS_S) + 1)
    """By bucket, not cumulated; the last has no upper bound."""
    sum_s: float = 0.0

    def with_(self, seconds: float) -> HistogramValue:
        index = bisect.bisect_left(BUCKETS_S, seconds)
        counts = (*self.counts[:index], self.counts[index] + 1, *self.counts[index + 1 :])
        return HistogramValue(counts, self.sum_s + seconds)

    def cumulated(self) -> list[tuple[str, int]]:
        """(upper bound, how many were not longer)."""
        total, rows = 0, []
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), self.counts, strict=True):
            total += count
            rows.append((bound, total))
        return rows


@dataclass
class Family:
    """One metric with all its label sets; a histogram's values are :class:`HistogramValue`."""

    name: str
    kind: Kind
    help: str
    values: dict[Labels, float] = field(default_factory=dict)
    histograms: dict[Labels, HistogramValue] = field(default_factory=dict)


class Metrics:
    """An event sink. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._families = {name: Family(name, kind, text) for name, (kind, text) in DESCRIBED.items()}
        self._stalls_s: dict[tuple[Origin, int], float] = {}  # of checkpoints under way

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._count(event)

    def _count(self, event: Event) -> None:
        origin = event.origin
        match event:
            case events.Begun():
                self._add("checkpoints_begun_total", origin)
            case events.Captured():
                self._observe("call_seconds", origin, event.call_s)
                self._stalls_s[origin, event.step] = event.call_s
            case events.GateWaited():
                self._count_wait(event)
            case events.Copied():
                self._add("copied_bytes_total", origin, event.size_bytes)
            case events.Written():
                self._add("written_bytes_total", origin, event.size_bytes)
            case events.Published():
                self._count_published(event)
            case events.Failed():
                self._add("checkpoints_failed_total", origin)
                self._end_stall(event)
            case events.Skipped():
                self._add("checkpoints_skipped_total", origin)
                self._end_stall(event)
            case events.Pruned():
                self._add("checkpoints_pruned_total", origin, len(event.steps))
            case events.RestoreEnded():
                self._count_restore(origin, "ok" if event.next_step else "nothing", event.seconds)
            case events.RestoreFailed():
                self._count_restore(origin, "failed", event.seconds)
            case events.DamageFound():
                self._add("damaged_checkpoints_total", origin)
            case events.Replicated():
                self._add("replicated_total", origin)
                self._add("replicated_bytes_total", origin, event.size_bytes)
            case events.ReplicationFailed():
                self._add("replications_failed_total", origin)

    def _count_wait(self, event: events.GateWaited) -> None:
        self._observe("gate_wait_seconds", event.origin, event.waited_s)
        for cause in event.causes:
            self._add("gate_wait_cause_seconds_total", event.origin, cause["seconds"], cause=cause["cause"])
        if (event.origin, event.step) in self._stalls_s:
            self._stalls_s[event.origin, event.step] += event.waited_s

    def _count_published(self, event: events.Published) -> None:
        self._add("checkpoints_durable_total", event.origin)
        self._add("published_bytes_total", event.origin, event.size_bytes)
        self._observe("durable_seconds", event.origin, event.since_begun_s)
        self._set("last_durable_step", event.origin, event.step)
        self._set("last_durable_timestamp_seconds", event.origin, event.unix_s)
        self._end_stall(event)

    def _end_stall(self, event: events.CheckpointEvent) -> None:
        stall_s = self._stalls_s.pop((event.origin, event.step), None)
        if stall_s is not None:
            self._observe("stall_seconds", event.origin, stall_s)

    def _count_restore(self, origin: Origin, outcome: str, seconds: float) -> None:
        self._add("restores_total", origin, outcome=outcome)
        self._observe("restore_seconds", origin, seconds)

    def _add(self, name: str, origin: Origin, by: float = 1, **labels: str) -> None:
        values, key = self._families[f"datastates_{name}"].values, _labels(origin, labels)
        values[key] = values.get(key, 0) + by

    def _set(self, name: str, origin: Origin, value: float) -> None:
        self._families[f"datastates_{name}"].values[_labels(origin, {})] = value

    def _observe(self, name: str, origin: Origin, seconds: float) -> None:
        histograms, key = self._families[f"datastates_{name}"].histograms, _labels(origin, {})
        histograms[key] = histograms.get(key, HistogramValue()).with_(seconds)

    def families(self) -> list[Family]:
        """A copy of everything, arenas included as they are now; metrics without a value are left out."""
        arenas = [(one.origin, *one.arena_use()) for one in observed()]
        with self._lock:
            for origin, used, size in arenas:
                self._set("arena_used_bytes", origin, used)
                self._set("arena_bytes", origin, size)
            copies = [
                Family(f.name, f.kind, f.help, dict(f.values), dict(f.histograms)) for f in self._families.values()
            ]
        return [family for family in copies if family.values or family.histograms]

    def text(self) -> str:
        """The text exposition format, version 0.0.4."""
        return exposition(self.families())


def _labels(origin: Origin, more: Mapping[str, str]) -> Labels:
    return (("directory", origin.directory), ("rank", str(origin.rank)), *more.items())


def exposition(families: Iterable[Family]) -> str:
    """Pure: families as Prometheus reads them."""
    return "".join(line + "\n" for family in families for line in _lines(family))


def _lines(family: Family) -> Iterator[str]:
    yield f"# HELP {family.name} {_escaped(family.help)}"
    yield f"# TYPE {family.name} {family.kind}"
    for labels, value in family.values.items():
        yield _sample(family.name, labels, value)
    for labels, histogram in family.histograms.items():
        rows = histogram.cumulated()
        for bound, count in rows:
            yield _sample(f"{family.name}_bucket", (*labels, ("le", bound)), count)
        yield _sample(f"{family.name}_sum", labels, histogram.sum_s)
        yield _sample(f"{family.name}_count", labels, rows[-1][1])


def _sample(name: str, labels: Labels, value: float) -> str:
    shown = ",".join(f'{key}="{_escaped(text, quotes=True)}"' for key, text in labels)
    return f"{name}{{{shown}}} {value!r}"


def _escaped(text: str, quotes: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text
