"""What the ranks of ``test_views.py`` do: ``python views_job.py SCENARIO ARGUMENT``; prints ``RESULT json`` lines.

Members are told apart by their first rank, which every sum and every payload carries.
"""

import json
import os
import signal
import sys
import threading
from typing import Any

import torch
import torch.distributed as dist

import elaswave

FIRST_RANK = int(os.environ.get("FIRST_RANK", os.environ["RANK"]))


def say(word: str, **values: Any) -> None:
    os.write(1, f"{word} {json.dumps(values)}\n".encode())


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def total_of_members() -> int:
    """2 to the power of each member's first rank, summed: says exactly who took part."""
    total = torch.tensor([2**FIRST_RANK])
    dist.all_reduce(total)
    return int(total.item())


def until_lost() -> None:
    """Reduce again and again, until that fails of a loss."""
    while True:
        try:
            total_of_members()
        except RuntimeError as error:
            if not elaswave.lost(error):
                raise
            return


def recover() -> dict[str, Any]:
    """Recover until a reduction goes through; what the last view and the group then say."""
    group = elaswave.ElasticGroup.of(dist.group.WORLD)
    while True:
        view = group.recover(payload=str(FIRST_RANK).encode())
        try:
            total = total_of_members()
        except RuntimeError as error:
            if not elaswave.lost(error):
                raise
            continue
        return {
            "members": [int(payload) for payload in view.payloads],
            "lost": list(view.lost),
            "joined": list(view.joined),
            "ranks": list(view.ranks),
            "place": [dist.get_rank(), dist.get_world_size(), group.rank, group.num_ranks],
            "epochs_agree": group.epoch == view.epoch,
            "total": total,
        }


def killed(rounds: list[list[int]]) -> None:
    """In each round some die, by first rank, in the middle of reductions."""
    for victims in rounds:
        if FIRST_RANK in victims:
            for _ in range(20):
                total_of_members()
            die()
        until_lost()
        say("RESULT", **recover())


def killed_in_agreement(moments: dict[str, float]) -> None:
    """Rank 0 dies; others follow it while the survivors agree, so many milliseconds after they have noticed."""
    if FIRST_RANK == 0:
        total_of_members()
        die()
    until_lost()
    if str(FIRST_RANK) in moments:
        threading.Timer(moments[str(FIRST_RANK)] / 1000, die).start()
    result = recover()
    if str(FIRST_RANK) in moments:
        threading.Event().wait()  # for its end
    while len(result["members"]) > num_survivors(moments):
        until_lost()
        result = recover()
    say("RESULT", **result)


def num_survivors(moments: dict[str, float]) -> int:
    return int(os.environ["WORLD_SIZE"]) - 1 - len(moments)


def stopped(sleeper: int) -> None:
    """One is suspended; the others want a new view, and it has no part in it."""
    total_of_members()
    store = dist.distributed_c10d._get_default_store()
    if sleeper == FIRST_RANK:
        store.set("summed", "")
        store.wait([f"seen by {rank}" for rank in range(dist.get_world_size()) if rank != sleeper])
        say("SLEEPS")
        os.kill(os.getpid(), signal.SIGSTOP)
        until_lost()
        say("AWAKE")
        recover()
        say("BACK")
    else:
        store.wait(["summed"])  # a revocation would end its sum as well
        store.set(f"seen by {FIRST_RANK}", "")
    say("RESULT", **recover())


def grown(_: None) -> None:
    """A newcomer gets in, and the state of a member; then a founder dies."""
    state = torch.zeros(1000)
    if "ELASWAVE_ATTEMPT" not in os.environ:
        state += 7
        group = elaswave.ElasticGroup.of()
        group._store.wait([f"elastic/{group._service.name}/joiner/1"])
        view = group.grow(payload=str(FIRST_RANK).encode())
        say("GROWN", joined=list(view.joined), ranks=list(view.ranks))
    dist.broadcast(state, src=0)
    say("STATE", total=total_of_members(), state=float(state.sum()))
    if FIRST_RANK == 0:
        die()
    until_lost()
    say("RESULT", **recover())


def refused(_: None) -> None:
    """What cannot be edited says so."""
    texts = []
    for group in (dist.new_group([0, 1]), dist.new_group([0, 1], backend="gloo")):
        try:
            elaswave.ElasticGroup.of(group)
        except elaswave.ViewError as error:
            texts.append(str(error))
    try:
        elaswave.ElasticGroup.of().agree(b"x" * 5000)
    except elaswave.ViewError as error:
        texts.append(str(error))
    try:
        elaswave.ElasticGroup.of().agree(timeout_s=0.01) if FIRST_RANK == 0 else None
    except TimeoutError as error:
        texts.append(str(error))
    dist.get_world_size()
    say("RESULT", texts=texts)


dist.init_process_group("elastic")
globals()[sys.argv[1]](json.loads(sys.argv[2]))
