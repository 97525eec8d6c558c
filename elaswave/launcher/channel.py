"""Newline-delimited JSON over a stream, both ways; sending never waits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

LINE_LIMIT_BYTES = 1 << 20
BACKLOG_LIMIT_BYTES = 8 << 20  # of a peer that reads nothing: it is stopped or gone, and memory is not for it to use

Message = dict[str, Any]
Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
"""Starts a task of the agent; if it fails, so does the agent."""


class Channel:
    """One connection. Owned by an event loop, used from its thread only."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    def send(self, message: Message) -> None:
        """Queue a message; a peer with too many unread ones is cut off, which its side sees as an end of stream."""
        transport = self.writer.transport
        if transport.is_closing():
            return
        self.writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        if transport.get_write_buffer_size() > BACKLOG_LIMIT_BYTES:
            transport.abort()

    async def receive(self) -> Message | None:
        """The next message; None at the end of the stream, however it came.

        Raises:
            ValueError: what came is not a JSON object on one line of reasonable length.
        """
        try:
            line = await self._reader.readline()
        except OSError:  # reset, or no way to it any more
            return None
        if not line.endswith(b"\n"):
            return None
        try:
            message = json.loads(line)
        except RecursionError:
            raise ValueError(f"expected a JSON object, got one too deep to read, {line[:80]!r}") from None
        if not isinstance(message, dict):
            raise ValueError(f"expected a JSON object, got {line[:80]!r}")
        return message

    @property
    def has_ended(self) -> bool:
        """The other side has hung up, and everything it sent was received."""
        return self._reader.at_eof()

    def close(self) -> None:
        """Send what is queued, then close; does not wait."""
        self.writer.close()
