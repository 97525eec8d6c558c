"""Exchanges between ranks, here threads over an in-process store: what they give, what they say of who is missing."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed as dist

from datastates import CheckpointError, CoordinationError
from datastates.agreement import Planner, begin_message, refusal
from datastates.capture import Captured, StateCapture
from datastates.coordination import Channel


def channels(num_ranks: int) -> list[Channel]:
    store = dist.HashStore()
    return [Channel(store, rank, num_ranks) for rank in range(num_ranks)]


def on_all(act: Callable[[Any], Any], ranks: list[Any]) -> list[Any]:
    """What ``act`` returns on every rank, all at once; an exception stands for itself."""
    with ThreadPoolExecutor(len(ranks)) as pool:
        started = [pool.submit(act, rank) for rank in ranks]
        return [one.exception() or one.result() for one in started]


def test_everybody_gets_everybodys_answer_by_rank() -> None:
    found = on_all(lambda c: c.gather("k", b"of %d" % c.rank, 30), channels(3))
    assert found == [[b"of 0", b"of 1", b"of 2"]] * 3


def test_the_leader_is_heard_by_all() -> None:
    found = on_all(lambda c: c.from_leader("k", b"go" if c.rank == 0 else None, 30), channels(3))
    assert found == [b"go"] * 3


def test_one_rank_alone_answers_itself() -> None:
    alone = Channel(None, 0, 1)
    assert alone.gather("k", b"x", 0.1) == [b"x"]
    assert alone.from_leader("k", b"y", 0.1) == b"y"
    alone.leave(0.1)


def test_ranks_that_do_not_answer_are_named() -> None:
    ranks = channels(4)
    for error in on_all(lambda c: c.gather("written/7", b"", 0.2), [ranks[0], ranks[2]]):
        assert isinstance(error, CoordinationError)
        assert "written/7: no answer from rank 1, 3 within 0 s (dead, hung, or it took no checkpoint)" in str(error)


def test_a_leader_that_does_not_answer_is_named() -> None:
    with pytest.raises(CoordinationError, match=r"published/7: no answer from rank 0 within"):
        channels(2)[1].from_leader("published/7", None, 0.2)


def test_what_everybody_has_read_leaves_the_store() -> None:
    ranks = channels(2)
    store = ranks[0]._store
    assert store is not None
    sizes = []
    for number in range(5):
        on_all(lambda c, key=f"k{number}": c.gather(key, b"", 30), ranks)
        sizes.append(store.num_keys())
    assert sizes[1:] == [sizes[0]] * 4


def captured(**tensors: torch.Tensor) -> Captured:
    return StateCapture(rank=0).take(tensors, 0, 0)


def agree(planner: Planner, mine: Captured, key: str) -> Any:
    begin = begin_message(mine, 1, ready=True, attempt="a", problem="", alone=False)
    return planner.agree(mine, begin, key, "wait")


def test_an_exchange_that_one_rank_did_not_hear_out_is_made_up_for() -> None:
    """Rank 1 answers, hangs, and never sees the other's description; both plan alike the next time."""
    ranks = channels(2)
    planners = [Planner(channel, 1 << 20, 0.5) for channel in ranks]
    held = [captured(a=torch.ones(3)), captured(a=torch.ones(3), b=torch.ones(5))]

    def hang(rank: int) -> Any:
        if rank == 0:
            return agree(planners[0], held[0], "0")
        begin = begin_message(held[1], 1, ready=True, attempt="a", problem="", alone=False)
        ranks[1].gather("begin/0", begin.dump(), 0.5)
        return ranks[1].gather("describe/0", b"[[],{}]", 0.5)

    assert len(on_all(hang, [0, 1])) == 2
    assert (planners[0]._known, planners[1]._known) == ("0", "")
    (first, *_), (second, *_) = on_all(lambda rank: agree(planners[rank], held[rank], "1"), [0, 1])
    assert first.tensors == second.tensors
    assert first.tensors.keys() == {"a", "b"}


def test_a_refusal_fails_all_and_the_next_agreement_holds() -> None:
    planners = [Planner(channel, 1 << 20, 30) for channel in channels(2)]
    mine = captured(a=torch.ones(3))

    def refuse(rank: int) -> Any:
        if rank == 0:
            return agree(planners[0], mine, "0")
        return planners[1].agree(None, refusal(-1, "TypeError: no form"), "0", "wait")

    for error in on_all(refuse, [0, 1]):
        assert isinstance(error, CheckpointError)
        assert str(error) == "rank 1: TypeError: no form"
    (first, *_), (second, *_) = on_all(lambda rank: agree(planners[rank], mine, "1"), [0, 1])
    assert first.tensors == second.tensors
