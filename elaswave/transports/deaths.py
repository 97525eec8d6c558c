"""Proofs of death: the pidfds of the processes of this host, and the news of the launcher's agents."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any

from elaswave.agent_link import AgentLink


@dataclasses.dataclass(frozen=True, kw_only=True)
class Process:
    """A member's process; its number in the list of them names it for good."""

    launch_rank: int
    pid: int
    host: str
    """equal where pids mean the same: boot and pid namespace"""


def own_process(launch_rank: int) -> Process:
    """Of the caller."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    return Process(launch_rank=launch_rank, pid=os.getpid(), host=f"{boot} {os.readlink('/proc/self/ns/pid')}")


class Deaths:
    """Watches from construction to ``close()``, on a thread of its own. Thread-safe."""

    def __init__(self, processes: Sequence[Process], own: int, link: AgentLink | None, told: Callable[[int], None]):
        """``told`` is called with the number of each process that has died, on the thread that learned of it."""
        self._told = told
        self._processes = processes
        self._changed = threading.Condition()
        self._proven: set[int] = set()
        self._pidfds: dict[int, int] = {}  # descriptor -> number
        self._wake = os.eventfd(0)
        self._gone_before: list[int] = []
        for number, process in enumerate(processes):
            if process.host == processes[own].host and number != own:
                try:
                    self._pidfds[os.pidfd_open(process.pid)] = number
                except ProcessLookupError:
                    self._gone_before.append(number)
        self._thread = threading.Thread(target=self._watch, name="elaswave-deaths", daemon=True)
        self._thread.start()
        if link:
            link.subscribe(self._heard)

    def proven(self) -> frozenset[int]:
        """Numbers of those that are dead beyond doubt."""
        with self._changed:
            return frozenset(self._proven)

    def wait(self, timeout_s: float) -> None:
        """Return at the next death, or after ``timeout_s``."""
        with self._changed:
            self._changed.wait(timeout_s)

    def kill(self, numbers: Collection[int]) -> bool:
        """SIGKILL those that are processes of this host; whether there are any."""
        reached = [descriptor for descriptor, number in self._pidfds.items() if number in numbers]
        for descriptor in reached:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        return bool(reached)

    def close(self) -> None:
        """Idempotent."""
        if self._thread.is_alive():
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            for descriptor in (*self._pidfds, self._wake):
                os.close(descriptor)

    def _watch(self) -> None:
        for number in self._gone_before:
            self._note(number)
        poll = select.poll()
        for descriptor in (*self._pidfds, self._wake):
            poll.register(descriptor, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self._wake:
                    return
                poll.unregister(descriptor)
                self._note(self._pidfds[descriptor])

    def _heard(self, event: dict[str, Any]) -> None:
        for number, process in enumerate(self._processes):
            if event.get("event") == "death" and (event["rank"], event["pid"]) == (process.launch_rank, process.pid):
                self._note(number)

    def _note(self, number: int) -> None:
        with self._changed:
            is_news = number not in self._proven
            self._proven.add(number)
            self._changed.notify_all()
        if is_news:
            self._told(number)
