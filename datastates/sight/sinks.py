"""Sinks that are made already: a file of JSON lines, and Python's logging."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from datastates.sight.bus import add_sink
from datastates.sight.events import (
    DamageFound,
    Event,
    Failed,
    Origin,
    ReplicationFailed,
    RestoreFailed,
    RestoreFellBack,
)

EVENTS_VARIABLE = "ELASTATES_EVENTS"
"""Environment variable: the file of JSON lines of checkpointers that were not given ``events=``."""


class JsonLinesSink:
    """Appends one JSON object per event to a file, each with one write: a reader, or a kill, never finds half a line.

    Args:
        path: the file, made if missing, with its directory.
        directory: only events of this checkpointer's directory; ``None``: of all.
    """

    def __init__(self, path: str | os.PathLike[str], directory: str | None = None) -> None:
        self.path = Path(path)
        self._directory = directory
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def __call__(self, event: Event) -> None:
        if self._directory in (None, event.origin.directory):
            line = json.dumps(event.to_dict(), separators=(",", ":"), default=str)
            content = line.encode() + b"\n"
            if os.write(self._fd, content) < len(content):
                raise OSError(f"{self.path}: no room for another event")

    def close(self) -> None:
        """Idempotent; events that come later are an error."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __repr__(self) -> str:
        return f"JsonLinesSink({str(self.path)!r})"


class LoggingSink:
    """Tells every event to a logger, in one line; what went wrong as a warning.

    Args:
        logger: its name, or itself.
        level: of what went well.
    """

    def __init__(self, logger: str | logging.Logger = "datastates.events", level: int = logging.INFO) -> None:
        self._logger = logging.getLogger(logger) if isinstance(logger, str) else logger
        self._level = level

    def __call__(self, event: Event) -> None:
        bad = isinstance(event, Failed | DamageFound | RestoreFailed | RestoreFellBack | ReplicationFailed)
        level = max(self._level, logging.WARNING) if bad else self._level
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", one_line(event))


def one_line(event: Event) -> str:
    """``published step=12 rank=0 size_bytes=... since_begun_s=0.412``: no times of day, which loggers add."""
    hidden = ("event", "directory", "unix_s", "monotonic_s")
    values = {key: value for key, value in event.to_dict().items() if key not in hidden}
    return " ".join([event.name(), *(f"{key}={_shown(value)}" for key, value in values.items())])


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def open_event_file(path: str | None, origin: Origin, num_ranks: int) -> JsonLinesSink | None:
    """The sink that ``Checkpointer(events=...)`` or the environment asks for, added."""
    path = path or os.environ.get(EVENTS_VARIABLE)
    if not path:
        return None
    sink = JsonLinesSink(file_of_rank(path, origin.rank, num_ranks), origin.directory)
    add_sink(sink)
    return sink


def file_of_rank(path: str | os.PathLike[str], rank: int, num_ranks: int) -> Path:
    """A file of each rank's own: ``events.jsonl`` alone, ``events-rank-00003.jsonl`` among several."""
    path = Path(path)
    return path if num_ranks == 1 else path.with_name(f"{path.stem}-rank-{rank:05d}{path.suffix}")
