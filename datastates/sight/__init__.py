"""Sight: what checkpoints do, and why training waits for them.

Events go to sinks (:func:`add_sink`), to metrics (:func:`serve_metrics`) and into traces (:func:`trace`); the stall
report (:meth:`datastates.Checkpointer.stall_report`) is always kept. ``docs/sight.md`` shows all of them.
"""

from datastates.sight.bus import add_sink, emit, flush, num_dropped, remove_sink, sinks
from datastates.sight.events import (
    Agreed,
    ArenaAllocated,
    Begun,
    Captured,
    CheckpointEvent,
    Copied,
    DamageFound,
    Event,
    Failed,
    GateWaited,
    Origin,
    Pruned,
    Published,
    Replicated,
    ReplicationFailed,
    RestoreBegun,
    RestoreEnded,
    RestoreFailed,
    RestoreFellBack,
    Skipped,
    Submitted,
    Written,
)
from datastates.sight.exporters import (
    MetricsFile,
    MetricsServer,
    PrometheusCollector,
    metrics,
    serve_metrics,
    write_metrics,
)
from datastates.sight.sinks import JsonLinesSink, LoggingSink
from datastates.sight.stalls import GateWait, Share, StallReport
from datastates.sight.timeline import Cause
from datastates.sight.trace import merge_traces, trace

__all__ = [
    "Agreed",
    "ArenaAllocated",
    "Begun",
    "Captured",
    "Cause",
    "CheckpointEvent",
    "Copied",
    "DamageFound",
    "Event",
    "Failed",
    "GateWait",
    "GateWaited",
    "JsonLinesSink",
    "LoggingSink",
    "MetricsFile",
    "MetricsServer",
    "Origin",
    "PrometheusCollector",
    "Pruned",
    "Published",
    "Replicated",
    "ReplicationFailed",
    "RestoreBegun",
    "RestoreEnded",
    "RestoreFailed",
    "RestoreFellBack",
    "Share",
    "Skipped",
    "StallReport",
    "Submitted",
    "Written",
    "add_sink",
    "emit",
    "flush",
    "merge_traces",
    "metrics",
    "num_dropped",
    "remove_sink",
    "serve_metrics",
    "sinks",
    "trace",
    "write_metrics",
]
