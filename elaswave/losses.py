"""Which ranks an error says were lost: errors cross torch as text, so the text carries it."""

from __future__ import annotations

import dataclasses
import re

_MARK = re.compile(r"\[elastic epoch (?P<epoch>\d+), lost ranks (?P<ranks>[\d, ]*)\]")


def asks_for_a_view(why: str, epoch: int) -> str:
    """A reason to revoke a group that ``lost()`` knows, with nobody lost: its members are to recover all the same."""
    return f"{why} [elastic epoch {epoch}, lost ranks ]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeerLost:
    """What an operation failed of."""

    ranks: tuple[int, ...]
    """the ranks that were seen lost when the error arose, numbered as in ``epoch``; more may have died since. Empty if
    somebody asked for a new view for another reason: to let others in, or because a rank hangs"""
    epoch: int
    """of the view in which the operation ran"""
    why: str
    """the error's text"""


def lost(error: BaseException) -> PeerLost | None:
    """The loss that an error of ``torch.distributed`` tells of, or None if it tells of something else.

    Follows ``__cause__`` and ``__context__``: an optimizer or a hook may have wrapped the error.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if match := _MARK.search(str(current)):
            ranks = tuple(int(rank) for rank in match["ranks"].split(",") if rank.strip())
            return PeerLost(ranks=ranks, epoch=int(match["epoch"]), why=str(current))
        current = current.__cause__ or current.__context__
    return None
