"""A worker's connection to the agent of its node: says who it is, hears of every death, can have a member killed.

Imports no torch. A thread of its own reads, so that news arrive while the training thread computes or waits.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

from elaswave.errors import LaunchError

Message = dict[str, Any]
News = Callable[[Message], None]
"""Called on the reading thread with each event (elaswave/launcher/events.py); {"event": "agent_ended"} is the last."""


class AgentLink:
    """Open from construction to ``close()``; thread-safe.

    A worker whose agent has ended goes on: nobody watches it for hangs or kills it on behalf of others any more, but
    nothing that it needs for training went with the agent.
    """

    def __init__(self, address: str, token: str, news: News) -> None:
        """Connect.

        Args:
            address: ELASWAVE_AGENT; "@name" is an abstract unix socket.
            token: ELASWAVE_TOKEN, which names this process to the agent.
            news: hears everything; whatever it raises is kept and raised by the next call here.

        Raises:
            LaunchError: nobody listens there.
        """
        self._token, self._news = token, news
        self._error: BaseException | None = None
        self._sending = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
        except OSError as error:
            self._socket.close()
            raise LaunchError(f"the agent at ELASWAVE_AGENT={address!r} does not answer: {error}") from error
        self._reader = threading.Thread(target=self._read, name="elaswave-agent-link", daemon=True)
        self._reader.start()

    def hello(self, member_id: str, handle: str, **more: object) -> None:
        """Say who this process is to other members; what has happened up to now comes as news."""
        self._send({"hello": {"id": member_id, "handle": handle}, "token": self._token, **more})

    def kill(self, member_id: str) -> None:
        """Have a member killed by the agent that can reach it; the news of its death is the answer."""
        self._send({"kill": member_id})

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
            with self._socket.makefile("rb") as lines:
                for line in lines:
                    self._hear(json.loads(line))
        except Exception as error:  # noqa: BLE001 - any: kept, and raised by the next call
            self._error = self._error or error
        finally:
            self._hear({"event": "agent_ended"})
            self._socket.close()

    def _hear(self, message: Message) -> None:
        if "error" in message:
            self._error = LaunchError(f"refused by the agent: {message['error']}")
            return
        try:
            self._news(message)
        except Exception as error:  # noqa: BLE001 - the caller's: kept, and raised by the next call
            self._error = self._error or error


def connect(news: News, environment: Mapping[str, str] = os.environ) -> AgentLink | None:
    """The link to the agent that started this process; None under another launcher."""
    address = environment.get("ELASWAVE_AGENT")
    return AgentLink(address, environment.get("ELASWAVE_TOKEN", ""), news) if address else None
