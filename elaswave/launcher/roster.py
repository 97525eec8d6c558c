"""What became of every rank of the job, as far as this agent was told. Pure: events go in, questions are answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from elaswave import exits
from elaswave.launcher.events import (
    AgentLost,
    Alive,
    Death,
    Entered,
    Event,
    Hang,
    Joined,
    OfProcess,
    Pace,
    Spares,
    Started,
)


@dataclasses.dataclass
class Seat:
    """A rank's place, and the process that has it, or had it last."""

    rank: int
    node: int
    attempt: int = -1
    pid: int = 0
    joined: Joined | None = None
    entered: Entered | None = None
    death: Death | None = None

    @property
    def is_running(self) -> bool:
        return self.pid > 0 and self.death is None

    @property
    def waits_to_enter(self) -> bool:
        return self.is_running and self.attempt > 0 and self.joined is not None and self.entered is None


class Roster:
    """All seats. A rank is *left* while its process runs or after it has finished with 0, unless its agent is lost."""

    def __init__(self, ranks_of_nodes: Mapping[int, range]) -> None:
        """``ranks_of_nodes[n]`` are the ranks of node n."""
        self.seats = {rank: Seat(rank, node) for node, ranks in ranks_of_nodes.items() for rank in ranks}
        self.free_spares: dict[int, int] = {}
        self.lost_nodes: set[int] = set()
        self.last_failure: Death | None = None
        self.silent_ranks: set[int] = set()
        self.median_s: dict[int, float] = {}

    def apply(self, event: Event) -> None:
        """Take note of what has happened."""
        if isinstance(event, Started):
            self.seats[event.rank] = Seat(event.rank, event.node, event.attempt, event.pid)
        elif isinstance(event, Joined) and self._is_current(event):
            self.seats[event.rank].joined = event
        elif isinstance(event, Entered) and self._is_current(event):
            self.seats[event.rank].entered = event
        elif isinstance(event, Death) and self._is_current(event):
            self.seats[event.rank].death = event
            self.last_failure = event if event.status else self.last_failure
            self.silent_ranks.discard(event.rank)
            self.median_s.pop(event.rank, None)
        elif isinstance(event, Hang):
            self.silent_ranks.add(event.rank)
        elif isinstance(event, Alive):
            self.silent_ranks.discard(event.rank)
        elif isinstance(event, Pace):
            self.median_s[event.rank] = event.median_s
        elif isinstance(event, Spares):
            self.free_spares[event.node] = event.num_free
        elif isinstance(event, AgentLost):
            self.lost_nodes.add(event.node)
            self.free_spares.pop(event.node, None)

    def history(self) -> list[Event]:
        """Events that lead a newcomer to this state, but for what earlier processes of a rank did."""
        told: list[Event] = [AgentLost(node=node, why="lost before") for node in sorted(self.lost_nodes)]
        told += [Spares(node=node, num_free=free) for node, free in self.free_spares.items()]
        for seat in self.seats.values():
            if seat.pid:
                told.append(Started(rank=seat.rank, node=seat.node, attempt=seat.attempt, pid=seat.pid))
            told += [event for event in (seat.joined, seat.entered, seat.death) if event]
        return told

    def vacant(self) -> list[Seat]:
        """Places that somebody should take: their process failed or cannot be reached, and nobody is on the way."""
        return [
            seat
            for seat in self.seats.values()
            if (seat.node in self.lost_nodes and not self._is_finished(seat))
            or (seat.death is not None and seat.death.status != exits.FINISHED and not seat.death.is_replaced)
        ]

    def num_left(self) -> int:
        """Ranks that run, will be started, or have finished."""
        return sum(map(self._is_left, self.seats.values()))

    def num_finished(self) -> int:
        """Ranks that ended with 0."""
        return sum(map(self._is_finished, self.seats.values()))

    def is_over(self) -> bool:
        """Nothing runs any more on a node that can be reached."""
        return all(
            seat.node in self.lost_nodes or (seat.death is not None and not seat.death.is_replaced)
            for seat in self.seats.values()
        )

    def has_lost_its_state(self) -> bool:
        """All that run here are newcomers that wait for members to let them in, and no member will.

        Every member is proven dead, or this is the side of a cut cable that has lost its quorum: members on the other
        side do not hear of its newcomers even when the cable is back.
        """
        running = [seat for seat in self.seats.values() if seat.is_running and seat.node not in self.lost_nodes]
        is_known = bool(running) and not self.num_finished() and (not self.lost_nodes or self.has_lost_quorum())
        return is_known and all(seat.waits_to_enter for seat in running)

    def has_lost_quorum(self) -> bool:
        """Nodes cannot be reached, and the last rank that failed ended because of that."""
        failure = self.last_failure
        return bool(self.lost_nodes) and failure is not None and failure.status == exits.NO_QUORUM

    def exit_status(self, min_ranks: int) -> int:
        """The job's, once it is over."""
        if self.num_finished() >= min_ranks:
            return exits.FINISHED
        return self.last_failure.status if self.last_failure else exits.NO_QUORUM

    def rank_of(self, member_id: str) -> int | None:
        """The rank whose running process said that it is this member."""
        for seat in self.seats.values():
            if seat.is_running and seat.joined and seat.joined.id == member_id:
                return seat.rank
        return None

    def _is_left(self, seat: Seat) -> bool:
        if self._is_finished(seat):
            return True
        return seat.node not in self.lost_nodes and (seat.death is None or seat.death.is_replaced)

    @staticmethod
    def _is_finished(seat: Seat) -> bool:
        return seat.death is not None and seat.death.status == exits.FINISHED

    def _is_current(self, event: OfProcess) -> bool:
        return self.seats[event.rank].attempt == event.attempt
