"""The agent's unix socket, where processes of this node say who they are and are told what happens to the others.

An abstract address ("@name"): it needs no file, so an agent that is killed leaves none behind. Only processes of the
same user come in.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable

from elaswave.launcher.channel import LINE_LIMIT_BYTES, Channel, Message

Answer = Callable[[Channel, int, Message], None]
"""(connection, pid of the process at its other end, message); raises ValueError to refuse and hang up."""


def address(name: str) -> str:
    """As processes find it in ELASWAVE_AGENT."""
    return f"@{name}"


class Door:
    """Accepts connections until closed."""

    def __init__(self, name: str, answer: Answer, gone: Callable[[Channel], None]) -> None:
        """``gone`` is called once for each connection that ends, by whichever side."""
        self.name, self._answer, self._gone = name, answer, gone
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Start to listen."""
        self._server = await asyncio.start_unix_server(self._serve, path=f"\0{self.name}", limit=LINE_LIMIT_BYTES)

    async def close(self) -> None:
        """Hang up on everybody."""
        if self._server:
            self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._serving.add(task)
        channel = Channel(reader, writer)
        try:
            await self._listen(channel, *_peer(writer))
        finally:
            self._serving.discard(task)
            self._gone(channel)
            channel.close()

    async def _listen(self, channel: Channel, pid: int, uid: int) -> None:
        if uid not in (os.geteuid(), 0):
            return
        try:
            while message := await channel.receive():
                self._answer(channel, pid, message)
        except (ValueError, KeyError, TypeError, OSError) as error:  # it sent nonsense, or ended meanwhile
            channel.send({"error": f"{type(error).__name__}: {error}"})


def _peer(writer: asyncio.StreamWriter) -> tuple[int, int]:
    """(pid, uid) of the process that connected, from the kernel."""
    own: socket.socket = writer.get_extra_info("socket")
    pid, uid, _ = struct.unpack("3i", own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return pid, uid
