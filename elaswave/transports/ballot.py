"""Agreement through a store that decides every question once: the first answer that is written stands.

The store is the witness: of two sides of a partition at most one reaches it. Nothing here moves tensors.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist

from elaswave.errors import FencedError
from elaswave.transports import quorum
from elaswave.transports.deaths import Deaths

POLL_S = 0.002
"""between two looks at the store while an agreement is under way; a recovery takes a few of them"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Who goes on, by the numbers that name processes for good."""

    members: tuple[int, ...]
    payloads: tuple[bytes, ...]


def agree(
    store: Any, epoch: int, members: Sequence[int], own: int, payload: bytes, deaths: Deaths, patience_s: float
) -> Outcome:
    """Meet all members that live, wait ``patience_s`` for silent ones, kill those of this host, go on without them.

    Raises:
        NoQuorumError: too few came.
        FencedError: the others decided without this process.
    """
    key = f"view/{epoch}"
    store.set(f"{key}/join/{own}", payload)
    end_s = time.monotonic() + patience_s

    def answer() -> str | None:
        proven = deaths.proven()
        present = [one for one in members if one not in proven and store.check([f"{key}/join/{one}"])]
        missing = set(members) - proven - set(present)
        if missing and time.monotonic() < end_s:
            return None
        if deaths.kill(missing) and time.monotonic() < end_s + patience_s:
            return None  # the proof comes
        ranks = [members.index(one) for one in present]
        gone = [rank for rank, one in enumerate(members) if one in proven]
        quorum.require(len(members), ranks, gone, has_witness=True)
        return json.dumps(present)

    decided = json.loads(decide(store, f"{key}/decided", answer, deaths))
    if own not in decided:
        raise FencedError(f"the others went on from epoch {epoch} without this process, which did not come in time")
    return Outcome(members=tuple(decided), payloads=tuple(store.get(f"{key}/join/{one}") for one in decided))


def all_well(
    store: Any, epoch: int, members: Sequence[int], own: int, is_well: bool, deaths: Deaths, patience_s: float
) -> bool:
    """Whether all members could take up the view; the same answer on all of them."""
    key = f"view/{epoch}"
    store.set(f"{key}/ready/{own}", str(int(is_well)))
    end_s = time.monotonic() + patience_s

    def answer() -> str | None:
        said = [store.get(f"{key}/ready/{one}") for one in members if store.check([f"{key}/ready/{one}"])]
        if b"0" in said or deaths.proven() & set(members) or time.monotonic() > end_s:
            return "0"
        return "1" if len(said) == len(members) else None

    return decide(store, f"{key}/well", answer, deaths) == "1"


def decide(store: Any, key: str, answer: Callable[[], str | None], deaths: Deaths) -> str:
    """The answer that was written first; ours, once there is one, if nobody else's."""
    while not store.check([key]):
        mine = answer()
        if mine is not None:
            store.compare_set(key, "", mine)
        else:
            deaths.wait(POLL_S)
    return str(store.get(key).decode())


def store_of(launched_by_agent: bool, host: str, port: int, rank: int) -> Any:
    """A client of the job's store; rank 0 hosts it where no agent does."""
    return dist.TCPStore(host, port, is_master=rank == 0 and not launched_by_agent, wait_for_workers=False)
