"""Who follows a dead rank: chosen by the rules of places.py, asked, and asked again where somebody cannot after all."""

from __future__ import annotations

import dataclasses
from collections.abc import Coroutine
from typing import Any, Protocol

from elaswave.launcher import places
from elaswave.launcher.events import AgentLost, Death, Event, Spares, Started
from elaswave.launcher.links import Links
from elaswave.launcher.options import Options
from elaswave.launcher.places import Fill
from elaswave.launcher.roster import Roster


class Starter(Protocol):
    """What the agent does for it."""

    @property
    def is_ending(self) -> bool:
        """Nobody is started or gets a place any more."""

    def promote(self, fill: Fill) -> bool:
        """Whether a spare of this node takes a place."""

    async def start_rank(self, rank: int, *, attempt: int) -> None:
        """Start a process for a rank on this node; OSError if that cannot be."""

    def tell(self, event: Event) -> None:
        """Tell everybody."""

    def say(self, text: str) -> None:
        """On the terminal."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> object:
        """Run a task, whose failure is the agent's."""


class Succession:
    """Of the ranks that died on this node, and of all vacant places while this node is the lowest that lives."""

    def __init__(self, options: Options, roster: Roster, links: Links, node: int, starter: Starter) -> None:
        self._options, self._roster, self._links, self._node, self._starter = options, roster, links, node, starter
        self._num_started = 0  # processes in place of dead ones
        self._filling: dict[int, Fill] = {}  # asked for by this agent, and not started yet

    def find(self, rank: int) -> Fill | None:
        """Who may follow a rank that has just died here; ``fill()`` comes next, once the death has been told."""
        if self._starter.is_ending:
            return None
        may_start = self._options.replaces and self._num_started < self._options.max_replacements
        return places.after_death(self._roster, rank=rank, node=self._node, may_start=may_start)

    def fill(self, fill: Fill) -> None:
        """Have a place taken; if nobody can after all, the death is told again as one that is not replaced."""
        if fill.rank in self._filling:
            return
        self._filling[fill.rank] = fill
        if fill.node != self._node:
            self._starter.say(f"rank {fill.rank}: a spare of node {fill.node} takes its place")
            if not self._links.send(fill.node, {"fill": fill.to_wire()}):
                self._roster.free_spares.pop(fill.node, None)
                self.not_filled(fill.rank)
        elif fill.is_spare:
            if not self._starter.promote(fill):
                self.not_filled(fill.rank)
        else:
            self._num_started += 1
            self._starter.say(f"rank {fill.rank}: a new process takes its place")
            self._starter.spawn(self._start(fill))

    async def _start(self, fill: Fill) -> None:
        try:
            await self._starter.start_rank(fill.rank, attempt=fill.attempt)
        except OSError as error:  # no memory, no descriptors: no reason to end those that live
            self._starter.say(f"rank {fill.rank}: {error}")
            self.not_filled(fill.rank)

    def not_filled(self, rank: int) -> None:
        """Whoever was to take a place cannot: another does, or nobody."""
        tried = self._filling.pop(rank, None)
        death = self._roster.seats[rank].death
        is_own = death is not None and death.is_replaced and death.node == self._node
        if is_own and tried and tried.is_spare and (fill := self.find(rank)):
            self.fill(fill)
            return
        self._starter.say(f"rank {rank}: nobody takes its place")
        if death:
            self._starter.tell(dataclasses.replace(death, is_replaced=False))

    def take_note(self, event: Event) -> None:
        """Of what has happened, once the roster has."""
        if isinstance(event, Started) or (isinstance(event, Death) and not event.is_replaced):
            self._filling.pop(event.rank, None)
        elif isinstance(event, AgentLost):
            for fill in [fill for fill in self._filling.values() if fill.node == event.node]:
                self.not_filled(fill.rank)
        if isinstance(event, Spares | AgentLost) and not self._starter.is_ending:
            for fill in places.vacancies(self._roster, node=self._node, living=self._links.living()):
                self.fill(fill)
