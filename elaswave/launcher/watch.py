"""Looks at the progress marks of this agent's ranks: finds hangs, has stacks dumped, kills who is at fault."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable

from elaswave.launcher import hangs
from elaswave.launcher.channel import Message, Spawn
from elaswave.launcher.events import Alive, Event, Hang, Pace
from elaswave.launcher.roster import Roster
from elaswave.launcher.staff import Process, Staff
from elaswave.marks import MarkReader, Marks
from elaswave.timeouts import Timeouts

STACKS_WAIT_S = 2.0  # for a process that is swapped out or starved to come round to its signal handler
STACKS_LOOK_S = 0.01


class Watched:
    """What the agent may look at in one process."""

    def __init__(self, pid: int, told: Message) -> None:
        """``pid`` told ``{"marks_fd": , "stacks_fd": , "stacks_signal": }``.

        Raises:
            ValueError: the descriptors are not what they should be.
        """
        self.pid = pid
        self.marks = MarkReader(pid, int(told["marks_fd"]))
        self.stacks_signal = int(told["stacks_signal"])
        self.suspect: hangs.Suspect | None = None
        self.is_long_paused = False
        self._pidfd = os.pidfd_open(pid)  # not the worker's own where that is a shell or the like around it
        self._stacks_fd = os.open(f"/proc/{pid}/fd/{int(told['stacks_fd'])}", os.O_RDONLY | os.O_CLOEXEC)

    def ask_for_stacks(self) -> None:
        """Have it dump them; a process that has ended meanwhile will not."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, self.stacks_signal)

    def new_stacks(self) -> str:
        """What has been dumped since the last call; nothing more once ``close`` was called."""
        if self._stacks_fd < 0:
            return ""
        return os.read(self._stacks_fd, 1 << 20).decode(errors="replace")

    def close(self) -> None:
        """Look no more."""
        os.close(self._stacks_fd)
        os.close(self._pidfd)
        self._stacks_fd = -1


class Watch:
    """The task that looks, every ``hang_check_s``."""

    def __init__(
        self,
        staff: Staff,
        roster: Roster,
        timeouts: Timeouts,
        node: int,
        *,
        tell: Callable[[Event], None],
        say: Callable[[str], None],
        spawn: Spawn,
    ) -> None:
        """``spawn`` starts a task and does not let its failure go unnoticed."""
        self._staff, self._roster, self._timeouts, self._node = staff, roster, timeouts, node
        self._tell, self._say, self._spawn = tell, say, spawn
        self._paced_at_s = 0.0
        self._dumping: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._timeouts.hang_check_s)
            for process in self._staff.ranks():
                if process.watched:
                    self._look(process, process.watched)
            self._kill_who_is_at_fault()
            if time.monotonic() >= self._paced_at_s + self._timeouts.heartbeat_s:
                self._paced_at_s = time.monotonic()
                self._pace()

    def _look(self, process: Process, watched: Watched) -> None:
        marks, now_ns, traced = watched.marks.read(), time.monotonic_ns(), hangs.is_traced(watched.pid)
        assert process.rank is not None
        self._say_if_long_paused(process.rank, watched, marks, (now_ns - marks.marked_at_ns) / 1e9)
        if watched.suspect is None:
            if hangs.is_silent(marks, now_ns=now_ns, is_traced=traced, timeouts=self._timeouts):
                watched.suspect = hangs.Suspect(since_ns=now_ns, marked_at_ns=marks.marked_at_ns)
                self._suspect(process.rank, marks.step, (now_ns - marks.marked_at_ns) / 1e9)
        elif hangs.has_answered(watched.suspect, marks, is_traced=traced):
            watched.suspect = None
            self._tell(Alive(rank=process.rank, node=self._node))

    def _say_if_long_paused(self, rank: int, watched: Watched, marks: Marks, silent_s: float) -> None:
        is_long = marks.is_paused and silent_s >= self._timeouts.failure_timeout_s
        if is_long and not watched.is_long_paused:
            self._say(f"rank {rank} is paused for {silent_s:.1f} s now: {marks.paused_for}")
        watched.is_long_paused = is_long

    def _suspect(self, rank: int, step: int, silent_s: float) -> None:
        self._say(
            f"rank {rank} has made no mark for {silent_s:.1f} s in step {step}. If steps may take so long: "
            "run.paused(...), or a longer --failure-timeout-s"
        )
        if self._dumping is None or self._dumping.done():
            self._dumping = self._spawn(self._dump_stacks())
        self._tell(Hang(rank=rank, node=self._node, step=step, silent_s=silent_s))

    def _kill_who_is_at_fault(self) -> None:
        if self._dumping is not None and not self._dumping.done():
            return  # stacks first
        of_rank = {one.rank: (one, one.watched) for one in self._staff.ranks() if one.rank is not None and one.watched}
        suspects = {rank: watched.suspect for rank, (_, watched) in of_rank.items() if watched.suspect}
        at_fault = hangs.find_at_fault(
            suspects,
            now_ns=time.monotonic_ns(),
            timeouts=self._timeouts,
            silent=self._roster.silent_ranks,
            running=[seat.rank for seat in self._roster.seats.values() if seat.is_running],
        )
        for rank in at_fault:
            process, watched = of_rank[rank]
            process.verdict = f"hung in step {watched.marks.read().step} and was killed"
            process.worker.kill()
            watched.suspect = None
        if at_fault:  # the others have a new reason to answer
            for rank in suspects.keys() - set(at_fault):
                watched = of_rank[rank][1]
                watched.suspect = dataclasses.replace(suspects[rank], since_ns=time.monotonic_ns())

    async def _dump_stacks(self) -> None:
        """Of all ranks of this node: who waits for the hung one shows where."""
        watched = {process.rank: process.watched for process in self._staff.ranks() if process.watched}
        for one in watched.values():
            one.ask_for_stacks()
        for rank, one in watched.items():
            text = "" if hangs.is_stopped(one.pid) else await _read_stacks(one)
            why_none = "is stopped" if hangs.is_stopped(one.pid) else f"dumped nothing within {STACKS_WAIT_S:g} s"
            self._say(f"stacks of rank {rank}:\n{text}" if text else f"no stacks of rank {rank}: it {why_none}")

    def _pace(self) -> None:
        for process in self._staff.ranks():
            median_s = process.watched.marks.read().median_s if process.watched else 0.0
            if process.rank is not None and median_s:
                self._tell(Pace(rank=process.rank, node=self._node, median_s=median_s))
        scores = hangs.straggler_scores(self._roster.median_s)
        for rank in set(scores) & set(self._roster_ranks()):
            self._report_slow(rank, scores[rank])

    def _roster_ranks(self) -> list[int]:
        return [process.rank for process in self._staff.ranks() if process.rank is not None]

    def _report_slow(self, rank: int, score: float) -> None:
        process = next(one for one in self._staff.ranks() if one.rank == rank)
        is_slow = score >= hangs.SLOW_RATIO
        if is_slow != process.is_slow:
            process.is_slow = is_slow
            state = "is a straggler" if is_slow else "is no straggler any more"
            self._say(f"rank {rank} {state}: {score:.2f} times the median time per step")


async def _read_stacks(watched: Watched) -> str:
    """All that comes within the wait, from the first byte on until nothing more does."""
    text, end_s = "", time.monotonic() + STACKS_WAIT_S
    while time.monotonic() < end_s:
        piece = watched.new_stacks()
        if text and not piece:
            break
        text += piece
        await asyncio.sleep(STACKS_LOOK_S)
    return text
