"""Who takes a dead rank's place: pure rules over the roster.

A spare of the same node, else a spare of another node, else (--replace) a new process on the dead one's node. The
agent of the dead rank decides at once, so that the news of the death says whether somebody comes. Places that stay
vacant, and those of a lost agent, are given away when there are spares by the lowest agent that lives.
"""

from __future__ import annotations

import dataclasses

from elaswave.launcher.roster import Roster


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fill:
    """A rank that gets a new process."""

    rank: int
    attempt: int
    node: int
    is_spare: bool
    """a spare of that node; else a new process"""

    def to_wire(self) -> dict[str, int]:
        """As one agent asks another."""
        return {"rank": self.rank, "attempt": self.attempt}


def after_death(roster: Roster, *, rank: int, node: int, may_start: bool) -> Fill | None:
    """Who takes the place of a rank that died on ``node``; ``may_start``: a new process may be started there."""
    attempt = roster.seats[rank].attempt + 1
    nodes = [node] if roster.free_spares.get(node, 0) > 0 else _nodes_with_spares(roster)
    if nodes:
        return Fill(rank=rank, attempt=attempt, node=nodes[0], is_spare=True)
    return Fill(rank=rank, attempt=attempt, node=node, is_spare=False) if may_start else None


def vacancies(roster: Roster, *, node: int, living: list[int]) -> list[Fill]:
    """What ``node`` has to give away now, if it is the lowest of the living agents."""
    if node != min(living):
        return []
    spares = [there for there in _nodes_with_spares(roster) for _ in range(roster.free_spares[there])]
    return [
        Fill(rank=seat.rank, attempt=seat.attempt + 1, node=there, is_spare=True)
        for seat, there in zip(roster.vacant(), spares, strict=False)
    ]


def _nodes_with_spares(roster: Roster) -> list[int]:
    return sorted(node for node, num_free in roster.free_spares.items() if num_free > 0)
