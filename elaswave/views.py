"""The service beside a group that keeps its views: fences, witnesses, news of deaths and of those who want to join.

The agreement itself runs natively, on the thread of the links (csrc/comm/view/). What it cannot do alone is asked of
the thread here: have a process of another host killed by its agent, ask the witness. News come from the agent.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

from elaswave import agent_link
from elaswave.errors import LaunchError
from elaswave.timeouts import Timeouts
from elaswave.witness import Witness

import _elastates


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
        self.timeouts = Timeouts(float(os.environ.get("ELASWAVE_FAILURE_TIMEOUT_S", Timeouts().failure_timeout_s)))
        self.keeper = _elastates.ViewKeeper(endpoint, name, self.timeouts.failure_timeout_s, witness is not None)
        self._witness = witness
        self._link = link
        self._error: BaseException | None = None
        self._lock = threading.Lock()  # guards the two below
        self._first_living: set[int] = set()  # ranks that still are the processes which the job began with
        self._has_anybody_finished = False
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

    def is_too_late(self) -> bool:
        """Whether the job ends: somebody has finished, and of those who were there from the start nobody lives."""
        with self._lock:
            return self._has_anybody_finished and not self._first_living

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
            except Exception as error:  # noqa: BLE001 - any: kept, and raised by the next call
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
        with self._lock:
            if event["event"] == "started" and not event["attempt"]:
                self._first_living.add(event["rank"])
            elif event["event"] == "death" and not event["attempt"]:
                self._first_living.discard(event["rank"])
                self._has_anybody_finished |= event["status"] == 0
        if event["event"] == "death" and event["id"]:
            self.endpoint.report_dead(int(event["id"], 16), f"{event['how']}, says its agent")
        elif event["event"] == "joined" and event["attempt"] and event["handle"] != self.endpoint.handle:
            self.add_candidate(event["handle"])
