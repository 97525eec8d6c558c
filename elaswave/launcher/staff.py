"""The processes of one agent: starting them, who is at which connection, and their ends, known by pidfd in no time."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from elaswave.launcher.channel import Channel, Message
from elaswave.launcher.console import Console
from elaswave.launcher.plan import WorkerPlan
from elaswave.launcher.worker import Worker

if TYPE_CHECKING:
    from elaswave.launcher.watch import Watched

Logs = tuple[Path | None, Path | None]


@dataclasses.dataclass(eq=False)
class Process:
    """A running process of this agent."""

    worker: Worker
    token: str
    rank: int | None
    """None: a spare"""
    attempt: int
    channels: set[Channel] = dataclasses.field(default_factory=set)
    is_warm: bool = False
    """a spare that has imported everything and waits"""
    verdict: str = ""
    """why the agent killed it, if it did"""
    watched: Watched | None = None
    """its progress marks and stacks, once it has shown them"""
    is_slow: bool = False
    """reported as a straggler"""
    promotion: Message | None = None
    """sent to a spare as soon as it is there to read it"""
    logs: tuple[Path | None, ...] = ()
    """of the rank that a spare became"""

    def send(self, message: Message) -> None:
        """To every connection that it has here."""
        for channel in self.channels:
            channel.send(message)


class Staff:
    """All processes of one agent that have not been reaped; used from the event loop's thread only."""

    def __init__(self, console: Console, ended: Callable[[Process, int], None]) -> None:
        """``ended(process, status)`` is called when one has ended and was reaped."""
        self._console, self._ended = console, ended
        self._of_token: dict[str, Process] = {}
        self._starting: set[asyncio.Future[None]] = set()  # done when the process is one of ours, or was not started

    def __iter__(self) -> Iterator[Process]:
        return iter(list(self._of_token.values()))

    def ranks(self) -> list[Process]:
        """Those that are no spares."""
        return [process for process in self if process.rank is not None]

    def free_spares(self) -> list[Process]:
        """Spares without a place."""
        return [process for process in self if process.rank is None]

    def free_spare(self) -> Process | None:
        """A spare to take a place: a warm one if there is any."""
        return max(self.free_spares(), key=lambda one: one.is_warm, default=None)

    async def start(self, plan: WorkerPlan, *, token: str, rank: int | None, attempt: int) -> Process:
        """Start a process, which must be given ``token`` in its environment."""
        under_way = asyncio.get_running_loop().create_future()
        self._starting.add(under_way)
        try:
            self._follow(plan.title, (plan.out, plan.err))
            worker = await asyncio.to_thread(Worker, plan)
            process = self._of_token[token] = Process(worker, token, rank, attempt)
            asyncio.get_running_loop().add_reader(worker.pidfd, self._reap, process)
            return process
        finally:
            self._starting.remove(under_way)
            under_way.set_result(None)

    def promote(self, spare: Process, *, rank: int, attempt: int, env: dict[str, str], logs: Logs) -> None:
        """Make a spare the process of a rank."""
        spare.rank, spare.attempt, spare.logs = rank, attempt, logs
        self._follow(f"rank {rank}", logs)
        spare.promotion = {"promote": {"env": env, "out": _name(logs[0]), "err": _name(logs[1])}}
        spare.send(spare.promotion)

    def _follow(self, title: str, logs: Logs) -> None:
        for path, is_error in zip(logs, (False, True), strict=True):
            if path:
                path.unlink(missing_ok=True)  # of an earlier job: its lines are not this one's
                self._console.follow(path, f"[{title}] ", is_error=is_error)

    def of_token(self, token: object) -> Process:
        """The process that was started with a token.

        Raises:
            ValueError: there is none, or it has ended.
        """
        process = self._of_token.get(str(token))
        if process is None:
            raise ValueError(f"no process of this agent was started with the token {token!r} (ELASWAVE_TOKEN)")
        return process

    def of_channel(self, channel: Channel) -> Process | None:
        """The process that said it is at the other end."""
        return next((process for process in self if channel in process.channels), None)

    def hung_up(self, channel: Channel) -> None:
        """Forget a connection."""
        for process in self:
            process.channels.discard(channel)

    def send(self, message: Message) -> None:
        """Tell everybody."""
        for process in self:
            process.send(message)

    def signal(self, number: int) -> None:
        """To every process that is no spare."""
        for process in self.ranks():
            process.worker.signal(number)

    def kill(self) -> None:
        """SIGKILL all, and all that they started."""
        for process in self:
            process.worker.kill()

    def _reap(self, process: Process) -> None:
        asyncio.get_running_loop().remove_reader(process.worker.pidfd)
        status = process.worker.reap()
        self._forget(process)
        self._ended(process, status)

    async def end(self) -> None:
        """Kill and reap whatever is left, and what is being started."""
        while self._starting or self._of_token:
            for under_way in list(self._starting):
                await under_way
            processes = list(self)
            for process in processes:
                asyncio.get_running_loop().remove_reader(process.worker.pidfd)
                with contextlib.suppress(ProcessLookupError):
                    process.worker.kill()
            for process in processes:
                await _ended(process.worker.pidfd)
                process.worker.reap()
                self._forget(process)

    def _forget(self, process: Process) -> None:
        self._of_token.pop(process.token)
        if process.watched:
            process.watched.close()
        for path in filter(None, (*process.logs, process.worker.plan.out, process.worker.plan.err)):
            self._console.unfollow(path)


async def _ended(pidfd: int) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)


def _name(path: Path | None) -> str:
    return str(path.resolve()) if path else ""


def draw_token() -> str:
    """A name for a process that nobody guesses."""
    return secrets.token_hex(16)
