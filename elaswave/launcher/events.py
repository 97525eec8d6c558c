"""What can happen to a process of a job, told to all agents and pushed to all workers as one line of JSON each.

``{"event": "death", "rank": 3, "node": 1, "attempt": 0, "pid": 4711, "id": "9f..", "status": 137, ...}``
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all; ``name`` is the value of "event" on the wire."""

    name: ClassVar[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfProcess(Event):
    """Of one process of a rank, and not of those that had the rank before or after it."""

    rank: int
    node: int
    attempt: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Started(OfProcess):
    """A process was started for a rank: the first one, or a replacement (``attempt`` counts them)."""

    name: ClassVar[str] = "started"
    pid: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joined(OfProcess):
    """The process of a rank has said who it is; ``handle`` is opaque here and leads other ranks to it."""

    name: ClassVar[str] = "joined"
    id: str
    handle: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entered(OfProcess):
    """A newcomer was let into the group: from now on it can let others in."""

    name: ClassVar[str] = "entered"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Death(OfProcess):
    """A process has ended, proven by ``waitpid``; ``status`` as a shell counts (0: it finished)."""

    name: ClassVar[str] = "death"
    pid: int
    id: str
    status: int
    how: str
    is_replaced: bool = False
    """somebody is about to take its place"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hang(Event):
    """A rank made no mark for the failure timeout; who can leave its wait should, and make a mark."""

    name: ClassVar[str] = "hang"
    rank: int
    node: int
    step: int
    silent_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alive(Event):
    """A rank that seemed to hang has made a mark."""

    name: ClassVar[str] = "alive"
    rank: int
    node: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace(Event):
    """How long a rank's own work takes in a step, median over its last ones."""

    name: ClassVar[str] = "pace"
    rank: int
    node: int
    median_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spares(Event):
    """How many spares of a node are free to take a place."""

    name: ClassVar[str] = "spares"
    node: int
    num_free: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentLost(Event):
    """An agent cannot be reached any more. No proof of anything about its ranks."""

    name: ClassVar[str] = "agent_lost"
    node: int
    why: str


KINDS: dict[str, type[Event]] = {
    kind.name: kind for kind in (Started, Joined, Entered, Death, Hang, Alive, Pace, Spares, AgentLost)
}


def encode(event: Event) -> dict[str, Any]:
    """The event as it goes over the wire."""
    return {"event": event.name, **dataclasses.asdict(event)}


def decode(message: Mapping[str, Any]) -> Event:
    """The event of a message.

    Raises:
        ValueError: unknown kind, or not its fields.
    """
    fields = dict(message)
    kind = KINDS.get(fields.pop("event", None))
    if kind is None or fields.keys() != {field.name for field in dataclasses.fields(kind)}:
        raise ValueError(f"not an event of this version of elastates: {message!r}")
    return kind(**fields)
