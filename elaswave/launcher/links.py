"""Agents of a job, each connected to each: how they meet, how one that comes late joins, how a lost one is noticed.

Meeting. The first agent listens where all were told to; the others say there what they have (``meet``), and get the
table of all nodes once everybody is there. Then each connects to every one with a lower number (``link``), and starts
when it is connected to all. From there on the first is like any other.

Late (--join). An agent that meets any agent of a running job gets a number of its own and all that has happened; it
connects to the others and offers its processes as spares.

Lost. The connection ends, or nothing comes for the failure timeout. It is not taken up again: whoever was cut off and
comes back has missed what happened, and has to join as a late one.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import time
from collections.abc import Callable
from typing import Protocol

from elaswave.errors import LaunchError
from elaswave.launcher import handshake
from elaswave.launcher.channel import LINE_LIMIT_BYTES, Channel, Message, Spawn
from elaswave.launcher.options import Options
from elaswave.launcher.plan import Job, Node, job_from_wire, job_to_wire

TCP_RTO_MAX_MS = 44
"""An option of Linux 6.15 and later, for which Python's socket has no name."""
RETRY_S = 0.1  # while the first agent is not there yet


class Hearer(Protocol):
    """What an agent does with what comes; called on the event loop's thread."""

    def heard(self, node: int, message: Message) -> None:
        """A message of another agent."""

    def agent_lost(self, node: int, why: str) -> None:
        """Once per agent."""

    def agent_arrived(self, node: Node) -> list[Message]:
        """A late one; returns what has happened, for it to know."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Met:
    """What an agent knows after the meeting."""

    job: Job
    node: int
    """its number"""
    history: list[Message]
    """what happened before, if it came late"""


@dataclasses.dataclass(eq=False)
class _Link:
    channel: Channel
    heard_at_s: float


class Links:
    """This agent's connections to the others. Used from the event loop's thread."""

    def __init__(
        self,
        options: Options,
        secret: str,
        hearer: Hearer,
        *,
        complain: Callable[[str], None],
        spawn: Spawn,
        begins_anew: bool = False,
    ) -> None:
        """``spawn`` starts a task and does not let its failure go unnoticed; ``begins_anew``: the agents have met
        before, and the first may still be ending the run before, to which nobody is let in any more."""
        self._options, self._secret, self._hearer = options, secret, hearer
        self._complain, self._spawn, self._begins_anew = complain, spawn, begins_anew
        self._is_ready = asyncio.Event()  # the hearer knows the job: what comes earlier waits in its connection
        self._links: dict[int, _Link] = {}
        self._changed = asyncio.Condition()
        self._job: Job | None = None
        self._me: Node
        self._waiting: dict[int, tuple[Node, Channel]] = {}  # met, and not answered yet
        self._server: asyncio.Server | None = None
        self._is_closing = False

    def begin(self) -> None:
        """Let the hearer hear, what came during the meeting first."""
        for link in self._links.values():
            link.heard_at_s = time.monotonic()
        self._is_ready.set()
        self._spawn(self._beat())

    # ---- afterwards -------------------------------------------------------------------------------------------------

    def living(self) -> list[int]:
        """Agents that can be reached, this one included."""
        return sorted([self._me.node, *self._links])

    def send(self, node: int, message: Message) -> bool:
        """To one agent; whether there is a connection."""
        if node in self._links:
            self._links[node].channel.send(message)
        return node in self._links

    def send_all(self, message: Message) -> None:
        """To all others."""
        for link in self._links.values():
            link.channel.send(message)

    async def close(self) -> None:
        """Say goodbye and hang up."""
        self._is_closing = True
        if self._server:
            self._server.close()
        self.send_all({"bye": self._me.node})
        for link in list(self._links.values()):
            with contextlib.suppress(TimeoutError, ConnectionError):
                await asyncio.wait_for(link.channel.writer.drain(), RETRY_S)
            link.channel.close()

    # ---- meeting ----------------------------------------------------------------------------------------------------

    async def meet(self, me: Node, job_name: str) -> Met:
        """Find the others.

        Raises:
            LaunchError: somebody did not come within ``meeting_s``; the message names who.
        """
        self._me = me
        if not self._options.meeting_points:
            self._job = Job(job=job_name, secret=self._secret, nodes={me.node: me})
            return Met(job=self._job, node=me.node, history=[])
        try:
            async with asyncio.timeout(self._options.timeouts.meeting_s):
                is_first = me.node == 0 and not self._options.joins
                history = await (self._gather(job_name) if is_first else self._introduce())
                await self._connect_to_lower(lost={told["node"] for told in history if told["event"] == "agent_lost"})
                async with self._changed:
                    await self._changed.wait_for(self._is_complete)
        except TimeoutError:
            raise LaunchError(self._who_is_missing()) from None
        assert self._job
        return Met(job=self._job, node=self._me.node, history=history)

    async def _gather(self, job_name: str) -> list[Message]:
        """The first agent: wait for all, tell all who is there."""
        host, _, port = self._options.meeting_points[0].rpartition(":")
        await self._listen(int(port))
        self._me = dataclasses.replace(self._me, host=host, port=int(port))
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._waiting) == self._options.num_nodes - 1)
        nodes = {self._me.node: self._me, **{node.node: node for node, _ in self._waiting.values()}}
        self._job = Job(job=job_name, secret=self._secret, nodes=dict(sorted(nodes.items())))
        for node, channel in self._waiting.values():
            channel.send({"met": job_to_wire(self._job), "you": node.node, "me": self._me.node, "history": []})
            self._add(node.node, channel)
        self._waiting.clear()
        return []

    async def _introduce(self) -> list[Message]:
        """Any other agent: meet the first, or if it comes late any that lives."""
        channel, answer = await self._be_taken()
        while self._begins_anew and "error" in answer:
            channel.close()
            await asyncio.sleep(RETRY_S)
            channel, answer = await self._be_taken()
        if "error" in answer:
            raise LaunchError(f"{','.join(self._options.meeting_points)} did not take this agent: {answer['error']}")
        self._job = job_from_wire(answer["met"], secret=self._secret)
        self._me = dataclasses.replace(self._me, node=answer["you"])
        self._add(answer["me"], channel)
        self._spawn(self._read(answer["me"], channel))
        history: list[Message] = answer["history"]
        return history

    async def _be_taken(self) -> tuple[Channel, Message]:
        channel = await self._reach_any()
        own_host = channel.writer.get_extra_info("sockname")[0]  # the address that leads to the others leads here
        if not self._server:
            self._me = dataclasses.replace(self._me, host=own_host, port=await self._listen(0))
        channel.send({"meet": dataclasses.asdict(self._me), "joins": self._options.joins})
        return channel, await channel.receive() or {"error": "it hung up"}

    async def _reach_any(self) -> Channel:
        while True:
            for point in self._options.meeting_points:
                host, _, port = point.rpartition(":")
                with contextlib.suppress(OSError):
                    return await self._connect(host, int(port))
            await asyncio.sleep(RETRY_S)

    async def _connect(self, host: str, port: int) -> Channel:
        channel = Channel(*await asyncio.open_connection(host, port, limit=LINE_LIMIT_BYTES))
        self._ask_again_soon(channel)
        try:
            await handshake.connecting(channel, self._secret)
        except ValueError as error:
            channel.close()
            raise LaunchError(f"{host}:{port}: {error}") from error
        except OSError:
            channel.close()
            raise
        return channel

    async def _connect_to_lower(self, lost: set[int]) -> None:
        assert self._job
        for other in self._job.nodes.values():
            if other.node < self._me.node and other.node not in {*self._links, *lost}:
                channel = await self._connect(other.host, other.port)
                channel.send({"link": dataclasses.asdict(self._me)})
                self._add(other.node, channel)
                self._spawn(self._read(other.node, channel))

    def _is_complete(self) -> bool:
        assert self._job
        return self._options.joins or self._job.nodes.keys() <= {self._me.node, *self._links}

    def _who_is_missing(self) -> str:
        there = {self._me.node, *self._waiting, *self._links}
        missing = sorted(set(range(self._options.num_nodes)) - there)
        waited_s = self._options.timeouts.meeting_s
        return f"the agents of nodes {missing} did not come to {self._options.meeting_points[0]} within {waited_s:g} s"

    # ---- connections ------------------------------------------------------------------------------------------------

    async def _listen(self, port: int) -> int:
        self._server = await asyncio.start_server(
            self._accept, None, port, limit=LINE_LIMIT_BYTES, family=socket.AF_INET
        )
        own_port: int = self._server.sockets[0].getsockname()[1]
        return own_port

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel = Channel(reader, writer)
        self._ask_again_soon(channel)
        self._spawn(self._serve(channel))

    def _ask_again_soon(self, channel: Channel) -> None:
        """TCP's pauses double: a cable cut for half of the failure timeout would be tried again after all of it."""
        longest_ms = max(1000, int(self._options.timeouts.failure_timeout_s * 1e3 / 8))
        with contextlib.suppress(OSError):  # an older kernel
            channel.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS, longest_ms)

    async def _serve(self, channel: Channel) -> None:
        try:
            await handshake.accepting(channel, self._secret)
            await self._let_in(channel, await channel.receive() or {})
        except (ValueError, KeyError, TypeError) as error:  # it is no agent of this version
            channel.send({"error": str(error)})
            self._complain(f"refused {channel.writer.get_extra_info('peername')}: {error}")
        finally:
            channel.close()

    async def _let_in(self, channel: Channel, message: Message) -> None:
        if "meet" in message:
            if self._job:
                await self._is_ready.wait()
            node = self._take_in(channel, Node(**message["meet"]), joins=bool(message.get("joins")))
        elif "link" in message:
            newcomer = Node(**message["link"])
            node = newcomer.node
            self._add(node, channel)
            if node >= self._options.num_nodes:  # a late one, which has met another agent
                await self._is_ready.wait()
                self._take_note_of(newcomer)
        else:
            raise ValueError(f"expected meet or link, got {message!r}")
        async with self._changed:
            self._changed.notify_all()
        await self._read(node, channel)

    def _take_note_of(self, newcomer: Node) -> list[Message]:
        assert self._job
        self._job = self._job.with_node(newcomer)
        return self._hearer.agent_arrived(newcomer)

    def _take_in(self, channel: Channel, node: Node, *, joins: bool) -> int:
        if self._job is None:
            if joins or not 0 < node.node < self._options.num_nodes or self._is_waiting(node.node):
                raise ValueError(f"node {node.node} (joins: {joins}) is not one of those that this job waits for")
            self._waiting[node.node] = (node, channel)
            return node.node
        if not joins:
            raise ValueError("the job is running: --join makes this node's processes spares for it")
        # A number that no other agent gives to somebody else at the same time.
        number = max(self._job.nodes) // self._options.num_nodes * self._options.num_nodes
        number += self._options.num_nodes + self._me.node
        node = dataclasses.replace(node, node=number, num_workers=0)
        history = self._take_note_of(node)
        channel.send({"met": job_to_wire(self._job), "you": number, "me": self._me.node, "history": history})
        self._add(number, channel)
        return number

    def _is_waiting(self, node: int) -> bool:
        """Whether an agent that was met is still there; one that was started again may come again."""
        return node in self._waiting and not self._waiting[node][1].has_ended

    def _add(self, node: int, channel: Channel) -> None:
        self._links[node] = _Link(channel, time.monotonic())

    async def _read(self, node: int, channel: Channel) -> None:
        """Until its end."""
        await self._is_ready.wait()
        why = "its connection ended"
        try:
            while message := await channel.receive():
                if node in self._links:
                    self._links[node].heard_at_s = time.monotonic()
                if "bye" in message:
                    why = ""
                elif "beat" not in message:
                    self._hearer.heard(node, message)
        except (ValueError, KeyError, TypeError) as error:
            why = f"{type(error).__name__}: {error}"
        self._lose(node, channel, why)

    def _lose(self, node: int, channel: Channel, why: str) -> None:
        channel.close()
        self._waiting.pop(node, None)
        if node in self._links and self._links[node].channel is channel:
            del self._links[node]
            if not self._is_closing:
                self._hearer.agent_lost(node, why)

    async def _beat(self) -> None:
        """Say that this agent lives, and notice who does not say so."""
        timeouts = self._options.timeouts
        while True:
            self.send_all({"beat": self._me.node})
            await asyncio.sleep(timeouts.heartbeat_s)
            for node, link in list(self._links.items()):
                silent_s = time.monotonic() - link.heard_at_s
                if silent_s > timeouts.failure_timeout_s:
                    self._lose(node, link.channel, f"nothing came from it for {silent_s:.1f} s")
