"""What a worker may say to its agent, and what is done about it.

The first message of a connection is ``{"token": ELASWAVE_TOKEN}``; the answer is everything that has happened so far,
as events, and from then on every new one. Later messages:

    {"hello": {"id": "...", "handle": "..."}}                     who this process is; all are told ("joined")
    {"entered": true}                                             the group has let this newcomer in; all are told
    {"watch": {"marks_fd": , "stacks_fd": , "stacks_signal": }}   see elaswave/marks.py and elaswave/stacks.py
    {"kill": "id"}                                                fence a member; the answer is the news of its death
    {"warm": true}                                                of a spare; the answer is {"promote": ...}, some day
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from elaswave.launcher.channel import Channel, Message
from elaswave.launcher.events import Entered, Event, Joined, encode
from elaswave.launcher.roster import Roster
from elaswave.launcher.staff import Process, Staff
from elaswave.launcher.watch import Watched


class Desk:
    """Answers the connections of one agent's processes."""

    def __init__(
        self,
        staff: Staff,
        roster: Roster,
        node: int,
        *,
        tell: Callable[[Event], None],
        fence: Callable[[str], bool],
        say: Callable[[str], None],
    ) -> None:
        """``fence(member id)`` has a member killed wherever it is, and returns whether it could be reached."""
        self._staff, self._roster, self._node, self._tell, self._fence = staff, roster, node, tell, fence
        self._say = say

    def answer(self, channel: Channel, pid: int, message: Message) -> None:
        """Deal with one message.

        Raises:
            ValueError: it makes no sense; the connection is closed with that text.
        """
        process = self._staff.of_channel(channel)
        if process is None:
            self._let_in(channel, message)
        elif "hello" in message:
            self._hello(process, message["hello"])
        elif "entered" in message:
            self._tell(Entered(rank=_rank_of(process), node=self._node, attempt=process.attempt))
        elif "watch" in message:
            watched = Watched(pid, message["watch"])
            if process.watched:
                process.watched.close()
            process.watched = watched
        elif "kill" in message:
            if not self._fence(str(message["kill"])):
                channel.send({"event": "not_killed", "id": message["kill"]})
        elif "warm" in message:
            process.is_warm = True
            self._say(f"{process.worker.plan.title} (pid {pid}) is warm")
        else:
            raise ValueError(f"expected hello, entered, watch, kill or warm, got {message!r}")

    def _let_in(self, channel: Channel, message: Message) -> None:
        process = self._staff.of_token(message.get("token"))
        for event in self._roster.history():
            channel.send(encode(event))
        process.channels.add(channel)
        if process.promotion:
            channel.send(process.promotion)

    def _hello(self, process: Process, who: dict[str, Any]) -> None:
        self._tell(
            Joined(
                rank=_rank_of(process),
                node=self._node,
                attempt=process.attempt,
                id=str(who["id"]),
                handle=str(who.get("handle", "")),
            )
        )


def _rank_of(process: Process) -> int:
    if process.rank is None:
        raise ValueError("a spare has no place yet, so nobody is to know it")
    return process.rank
