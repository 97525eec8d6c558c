"""The service beside a group that keeps its views: fences, witnesses, news of deaths and of those who want to join.

The agreement itself runs natively, on the thread of the links (csrc/comm/view/). What it cannot do alone is asked of
the thread here: have a process of another host killed by its agent, ask the witness. News come from the agent.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import Any

from elaswave import agent_link
from elaswave.errors import LaunchError
from elaswave.timeouts import Timeouts
from elaswave.witness import Witness

import _elastates

logger = logging.getLogger("elaswave")


class Ranks:
    """What the agents have told of the processes of all ranks. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all below
        self._members: set[int] = set()  # ranks whose living process began with the job, or was let in
        self._ends_of_first: dict[int, str] = {}
        self._has_anybody_finished = False

    def hear(self, event: agent_link.Message) -> None:
        """Take note of what has happened."""
        with self._lock:
            if event["event"] == "entered" or (event["event"] == "started" and not event["attempt"]):
                self._members.add(event["rank"])
            elif event["event"] == "started":
                self._ends_of_first.setdefault(event["rank"], "ended")  # who comes late does not hear how
            elif event["event"] == "death":
                self._members.discard(event["rank"])
                self._has_anybody_finished |= event["status"] == 0
                if not event["attempt"]:
                    self._ends_of_first[event["rank"]] = str(event["how"])

    def is_too_late(self) -> bool:
        """Whether the job ends: somebody has finished, and of those who could let others in nobody lives."""
        with self._lock:
            return self._has_anybody_finished and not self._members

    def end_of_first(self, rank: int) -> str:
        """How the process that the job began with as this rank ended; empty if it may live."""
        with self._lock:
            return self._ends_of_first.get(rank, "")


class ViewService:
    """Of one group in this process; starts with its native keeper, ends with ``close()``. Thread-safe."""

    def __init__(self, endpoint: Any, name: str, witness: Witness | None = None, job: str = "") -> None:
        """Listen from now on; ``keeper.open()`` or ``keeper.await_welcome()`` comes next.

        Args:
            endpoint: the native one of this process.
            name: of the group, equal on all members.
            witness: breaks exact ties; all members have one, or none has.
            job: tells this job's groups apart from others that use the same witness.
        """
        link = agent_link.of_process()
        self.endpoint = endpoint
        self.name = name
        self._job = job
        self.timeouts = Timeouts.from_environment()
        self.keeper = _elastates.ViewKeeper(endpoint, name, self.timeouts.failure_timeout_s, witness is not None)
        self._witness = witness
        self._link = link
        self._error: BaseException | None = None
        self.ranks = Ranks()
        self._thread = threading.Thread(target=self._serve, name="elaswave-views", daemon=True)
        self._thread.start()
        if link:
            link.subscribe(self._heard)
            link.hello(f"{endpoint.id:016x}", endpoint.handle)

    def add_candidate(self, handle: str, payload: bytes = b"") -> None:
        """Name somebody who wants to join in every agreement from when there is a link to it. Returns at once."""
        self.keeper.add_candidate(handle, payload)

    def tell_of_entry(self) -> None:
        """Let the agent know that this newcomer is a member now."""
        if self._link:
            with contextlib.suppress(LaunchError):  # the agent is gone: nobody counts who has the state
                self._link.entered()

    def check(self) -> None:
        """Raise what went wrong in the background."""
        if self._error:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """End the service. Idempotent; before the endpoint is closed."""
        self.keeper.close()
        self._thread.join()

    def _serve(self) -> None:
        while (request := self.keeper.next_request()) is not None:
            try:
                self._do(request)
            except Exception as error:  # any: kept, and raised by the next call, if this process gets to it
                logger.exception("a request of the group %s failed: %r", self.name, request)
                self._error = error

    def _do(self, request: tuple[Any, ...]) -> None:
        if request[0] == "fence" and self._link:
            with contextlib.suppress(LaunchError):  # the agent is gone: whom nobody can kill must be outnumbered
                self._link.kill(f"{request[1]:016x}")
        elif request[0] == "witness" and self._witness:
            _, epoch, expected, desired = request
            is_swapped, actual = self._witness.compare_and_set(f"{self._job}/{self.name}/{epoch}", expected, desired)
            self.keeper.answer_witness(epoch, is_swapped, actual)

    def _heard(self, event: agent_link.Message) -> None:
        self.ranks.hear(event)
        if event["event"] == "death" and event["id"]:
            self.endpoint.report_dead(int(event["id"], 16), f"{event['how']}, says its agent")
        elif event["event"] == "joined" and event["attempt"] and event["handle"] != self.endpoint.handle:
            self.add_candidate(event["handle"])
