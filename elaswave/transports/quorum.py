"""Who may go on after a loss. Pure.

A member whose death is *proven* (its own host saw the process end) leaves the count: it cannot go on elsewhere. One
that merely cannot be reached may be alive behind a cut cable, with others; only more than half of those not proven
dead may go on without it. An exact tie goes on if a witness, which serves one side only, speaks for this one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from elaswave import exits
from elaswave.errors import NoQuorumError


def proven_dead(lost: Collection[int], hosts: Sequence[str], present: Collection[int]) -> frozenset[int]:
    """Those of ``lost`` that ran on a host of which somebody is present: the host lives, and saw them end.

    For failure detectors that do not say how they know. A host that is gone as a whole proves nothing.
    """
    living_hosts = {hosts[rank] for rank in present}
    return frozenset(rank for rank in lost if hosts[rank] in living_hosts)


def require(num_members: int, present: Collection[int], proven: Collection[int], *, has_witness: bool) -> None:
    """Return if the ``present`` may go on.

    Args:
        num_members: of the view before.
        present: their ranks in it.
        proven: ranks in it of members proven dead.
        has_witness: something that only one side of a partition can reach speaks for this side.

    Raises:
        NoQuorumError: they may not.
    """
    num_counted = num_members - len(set(proven) - set(present))
    if 2 * len(present) > num_counted or (has_witness and 2 * len(present) == num_counted):
        return
    unreachable = sorted(set(range(num_members)) - set(present) - set(proven))
    raise NoQuorumError(
        f"{len(present)} of {num_counted} members that are not proven dead are here, and more than half are needed"
        f"{' (or half, with the witness)' if has_witness else ''}: ranks {unreachable} cannot be reached and may be "
        f"going on without us; end with status {exits.NO_QUORUM}"
    )
