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

from elaswave.launcher.channel import LINE_LIMIT_BYTES, Channel, Message, Spawn

Answer = Callable[[Channel, int, Message], None]
"""(connection, pid of the process at its other end, message); raises ValueError to refuse and hang up."""


def address(name: str) -> str:
    """As processes find it in ELASWAVE_AGENT."""
    return f"@{name}"


class Door:
    """Accepts connections until closed."""

    def __init__(self, name: str, answer: Answer, gone: Callable[[Channel], None], spawn: Spawn) -> None:
        """``gone`` is called once for each connection that ends, by whichever side; ``spawn`` starts a task."""
        self.name, self._answer, self._gone, self._spawn = name, answer, gone, spawn
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Start to listen."""
        self._server = await asyncio.start_unix_server(self._accept, path=f"\0{self.name}", limit=LINE_LIMIT_BYTES)

    def close(self) -> None:
        """Let nobody in any more; connections end with the tasks that serve them."""
        if self._server:
            self._server.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._spawn(self._serve(Channel(reader, writer)))

    async def _serve(self, channel: Channel) -> None:
        try:
            await self._listen(channel, *_peer(channel.writer))
        finally:
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
