"""The soak's verdicts on what processes claim: each must be able to find what it is there to find."""

from typing import Any

from benchmarks.soak import find_leaks, find_split_brains, is_wrong
from benchmarks.soak_job import contribution


def claim(pid: int = 11, step: int = 0, **changes: Any) -> dict[str, Any]:
    members = changes.get("members", [11, 12])
    value = sum(contribution(member, step) for member in members)
    right = {"epoch": 1, "members": members, "low": value, "high": value, "fds": 30, "threads": 8}
    return {"pid": pid, "step": step, **right, **changes}


def test_a_sum_must_be_that_of_the_members_it_names() -> None:
    assert not is_wrong(claim())
    assert is_wrong(claim(low=claim()["low"] - 1))
    assert is_wrong(claim(high=contribution(11, 0)))


def test_a_step_and_an_epoch_belong_to_one_group() -> None:
    good = [claim(11), claim(12), claim(11, 1, epoch=2, members=[11]), claim(11, 2, epoch=2, members=[11])]
    assert find_split_brains(good) == []
    (text,) = find_split_brains([claim(11), claim(12, epoch=2)])
    assert text.startswith("step 0 is claimed by ")
    (text,) = find_split_brains([claim(11, 0, members=[11]), claim(12, 1, members=[12])])
    assert text.startswith("epoch 1 is claimed by ")
    (text,) = find_split_brains([claim(13)])
    assert text == "process 13 claims step 0 of members (11, 12)"


def test_what_a_process_holds_may_not_grow_among_as_many_members() -> None:
    assert find_leaks([claim(step=step, fds=30 + step % 3) for step in range(20)]) == []
    assert find_leaks([claim(step=step, fds=30 + step) for step in range(20)]) == [
        "process 11 among 2 had 32 fds, then 47"
    ]
    assert find_leaks([claim(step=step, threads=8 + step) for step in range(20)]) == [
        "process 11 among 2 had 10 threads, then 25"
    ]
