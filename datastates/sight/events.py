"""Events: what happened to checkpoints, as plain data.

Each says where it comes from, when (wall clock, to compare with other logs; monotonic clock, to subtract), and what was
moved. Durations end at the event's own time.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Origin:
    """Whose event it is."""

    directory: str
    """The checkpointer's."""
    rank: int


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events."""

    origin: Origin = field(kw_only=False)
    unix_s: float = field(default_factory=time.time)
    monotonic_s: float = field(default_factory=time.monotonic)

    @classmethod
    def name(cls) -> str:
        """``gate_waited`` for ``GateWaited``."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    def to_dict(self) -> dict[str, Any]:
        """JSON values: the name under ``event``, then every field, those of the origin among them."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        origin = values.pop("origin")
        return {"event": self.name(), "directory": origin.directory, "rank": origin.rank, **values}


@dataclass(frozen=True, kw_only=True)
class CheckpointEvent(Event):
    """Something that happened to one checkpoint."""

    step: int


@dataclass(frozen=True, kw_only=True)
class Begun(CheckpointEvent):
    """``checkpoint()`` was called."""


@dataclass(frozen=True, kw_only=True)
class Captured(CheckpointEvent):
    """``checkpoint()`` returns: everything that is not copied lazily has been copied."""

    call_s: float
    """Time spent in the call, seconds."""
    num_tensors: int
    size_bytes: int
    """Of this rank's tensors."""


@dataclass(frozen=True, kw_only=True)
class Agreed(CheckpointEvent):
    """All ranks take this checkpoint, and know who writes what."""

    agreement_s: float
    """From the first message to the plan, seconds."""
    waited_s_by_rank: Mapping[int, float]
    """Time spent waiting for the answers of others, seconds; ranks that answered at once are left out."""


@dataclass(frozen=True, kw_only=True)
class ArenaAllocated(CheckpointEvent):
    """The arena was made for the first checkpoint."""

    size_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Submitted(CheckpointEvent):
    """The native engine has this rank's share."""

    size_bytes: int
    """Of this rank's data file."""
    since_begun_s: float


@dataclass(frozen=True, kw_only=True)
class Copied(CheckpointEvent):
    """Safe to mutate: every source byte of this rank has been copied."""

    size_bytes: int
    copy_s: float
    """From submitted to copied, seconds."""
    since_begun_s: float


@dataclass(frozen=True, kw_only=True)
class Written(CheckpointEvent):
    """This rank's files are complete and synced."""

    size_bytes: int
    write_s: float
    """From submitted to written, seconds."""
    since_begun_s: float


@dataclass(frozen=True, kw_only=True)
class Published(CheckpointEvent):
    """Durable: visible under its final name, on every rank."""

    path: str
    size_bytes: int
    """Data files of all ranks."""
    since_begun_s: float


@dataclass(frozen=True, kw_only=True)
class Failed(CheckpointEvent):
    """It will not be published."""

    error: str
    error_type: str
    since_begun_s: float


@dataclass(frozen=True, kw_only=True)
class Skipped(CheckpointEvent):
    """``policy="skip"``: some rank had no room."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Pruned(Event):
    """Retention let go of published checkpoints."""

    steps: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class GateWaited(CheckpointEvent):
    """Training waited at a gate for the copy of ``step``."""

    waited_s: float
    causes: tuple[Mapping[str, Any], ...]
    """What for: each with ``cause``, ``seconds``, and what :class:`datastates.sight.Share` knows besides."""
    summary: str


@dataclass(frozen=True, kw_only=True)
class DamageFound(CheckpointEvent):
    """Bytes on disk are not those that were written, or are missing."""

    what: str


@dataclass(frozen=True, kw_only=True)
class RestoreBegun(Event):
    """``restore()`` was called."""


@dataclass(frozen=True, kw_only=True)
class RestoreFellBack(CheckpointEvent):
    """The checkpoint of ``step`` could not be restored; an older one is tried, if there is one."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class RestoreEnded(Event):
    """``restore()`` returns."""

    next_step: int
    """0 if there was no checkpoint."""
    seconds: float
    damaged_steps: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RestoreFailed(Event):
    """``restore()`` raises."""

    error: str
    error_type: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Replicated(CheckpointEvent):
    """A copy of the checkpoint is complete in another tier."""

    url: str
    size_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ReplicationFailed(CheckpointEvent):
    """The copy in another tier was given up."""

    url: str
    error: str
    error_type: str
