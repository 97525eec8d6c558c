"""A process's connection to the agent of its node: hears of every death, says who it is, can have a member killed.

Imports no torch. A thread of its own reads, so that news arrive while the training thread computes or waits.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

from elaswave.errors import LaunchError

PASSING = ("pace", "hang", "alive", "spares")  # news that mean nothing to whoever subscribes later

logger = logging.getLogger("elaswave")

Message = dict[str, Any]
Listener = Callable[[Message], None]
"""Called with one event (elaswave/launcher/events.py) at a time, in order; {"event": "agent_ended"} is the last.
It must not wait for others: it holds up all later news."""


class AgentLink:
    """Open from construction to ``close()``; thread-safe.

    A worker whose agent has ended goes on: nobody watches it for hangs or kills it on behalf of others any more, but
    nothing that it needs for training went with the agent.
    """

    def __init__(self, address: str, token: str) -> None:
        """Connect.

        Args:
            address: ELASWAVE_AGENT; "@name" is an abstract unix socket.
            token: ELASWAVE_TOKEN, which names this process to the agent.

        Raises:
            LaunchError: nobody listens there.
        """
        self._error: BaseException | None = None
        self._changed = threading.Condition()  # guards the two lists and the promotion
        self._heard: list[Message] = []
        self._listeners: list[Listener] = []
        self._promotion: Message | None = None
        self.is_open = True
        """news may come"""
        self._sending = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
        except OSError as error:
            self._socket.close()
            raise LaunchError(f"the agent at ELASWAVE_AGENT={address!r} does not answer: {error}") from error
        self._send({"token": token})
        self._reader = threading.Thread(target=self._read, name="elaswave-agent-link", daemon=True)
        self._reader.start()

    def subscribe(self, listener: Listener) -> None:
        """Hear all that has happened up to now, at once and on this thread, and what happens later, on the link's.

        What a listener raises on that thread is logged; others hear all the same.
        """
        with self._changed:
            for event in self._heard:
                listener(event)
            self._listeners.append(listener)

    def hello(self, member_id: str, handle: str) -> None:
        """Say who this process is to other members; all of them hear it ("joined")."""
        self._send({"hello": {"id": member_id, "handle": handle}})

    def entered(self) -> None:
        """Say that the group has let this newcomer in."""
        self._send({"entered": True})

    def show(self, *, marks_fd: int, stacks_fd: int, stacks_signal: int) -> None:
        """Let the agent see the progress marks of this process and, upon the signal, its stacks."""
        self._send({"watch": {"marks_fd": marks_fd, "stacks_fd": stacks_fd, "stacks_signal": stacks_signal}})

    def kill(self, member_id: str) -> None:
        """Have a member killed by the agent that can reach it; the news of its death is the answer."""
        self._send({"kill": member_id})

    def wait_for_promotion(self) -> Message | None:
        """Of a spare: say that it is warm, then block until it gets a place; None when the agent has ended."""
        self._send({"warm": True})
        with self._changed:
            self._changed.wait_for(lambda: self._promotion is not None or not self.is_open)
            return self._promotion

    def close(self) -> None:
        """Hang up. Idempotent; news end."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # not connected any more
            return
        if threading.current_thread() is not self._reader:
            self._reader.join()

    def _send(self, message: Message) -> None:
        if self._error:
            raise LaunchError(f"the news of the agent could not be dealt with: {self._error}") from self._error
        with self._sending:
            try:
                self._socket.sendall(json.dumps(message).encode() + b"\n")
            except OSError as error:
                raise LaunchError(f"the agent of this node has ended: {error}") from error

    def _read(self) -> None:
        try:
            # Reset: the agent has ended. A line that does not end was cut off by its end.
            with self._socket.makefile("rb") as lines, contextlib.suppress(ConnectionError):
                for line in lines:
                    if line.endswith(b"\n"):
                        self._take(json.loads(line))
        except Exception as error:  # any: said now, and raised by the next call, if there is one
            logger.exception("the news of the agent end here")
            self._error = self._error or error
        finally:
            self.is_open = False
            self._hear({"event": "agent_ended"})
            self._socket.close()

    def _take(self, message: Message) -> None:
        if "promote" in message:
            with self._changed:
                self._promotion = message["promote"]
                self._changed.notify_all()
        elif "error" in message:
            self._error = LaunchError(f"refused by the agent: {message['error']}")
            logger.error("%s", self._error)
        else:
            self._hear(message)

    def _hear(self, event: Message) -> None:
        with self._changed:
            if event.get("event") not in PASSING:
                self._heard.append(event)
            for listener in self._listeners:
                try:
                    listener(event)
                except Exception:  # the listener's: fences must still be sent, and others told
                    logger.exception("a listener to the news of the agent failed at %r", event)
            self._changed.notify_all()


_links: dict[str, AgentLink] = {}  # of this process: at most one


def of_process(environment: Mapping[str, str] = os.environ) -> AgentLink | None:
    """The one link of this process to the agent that started it; None under another launcher."""
    address = environment.get("ELASWAVE_AGENT")
    if not address:
        return None
    if address not in _links or not _links[address].is_open:
        _links[address] = AgentLink(address, environment.get("ELASWAVE_TOKEN", ""))
    return _links[address]
