"""Power cuts: from whatever state the recorded runs could be left in, the newest durable checkpoint comes back.

``benchmarks/faults.py`` does the same with many more states.
"""

import re

import pytest

from benchmarks.crash import replay as replaying
from benchmarks.crash.replay import mutate, replay
from benchmarks.crash.runs import Run

RUNS = ["saving_run", "deltas_run", "two_ranks_run", "replacing_run", "going_on_run", "fetching_run"]


@pytest.mark.parametrize("name", RUNS)
def test_nothing_durable_is_lost_and_nothing_damaged_is_taken_for_whole(
    name: str, request: pytest.FixtureRequest
) -> None:
    run: Run = request.getfixturevalue(name)
    done = replay(run, states_per_moment=2, seed=3)
    assert done.problems == []
    assert done.num_states > 1.5 * done.num_moments > 60


def test_every_fsync_is_needed(saving_run: Run, two_ranks_run: Run, going_on_run: Run) -> None:
    """One that could be left out unnoticed would be superfluous, or the model of a power cut too kind."""
    mutations = mutate([going_on_run, two_ranks_run], states_per_moment=25)
    assert {mutation.site for mutation in mutations if not mutation.caught_by} == set()
    assert {re.sub(r".*(FileSink|\.\w+|^\w+): ?.*", r"\1", m.site).lstrip(".") for m in mutations} == {
        "FileSink",
        "_clear_leftovers",
        "_decide",
        "_digests",
        "_write_objects",
        "publish",
        "remove",
        "sync_ancestors",
    }


def test_the_record_is_in_true_order_and_complete(saving_run: Run) -> None:
    """Six checkpoints, four removed: every file that was made was synced before its directory was published."""
    times = [done.began_ns for done in saving_run.log]
    assert times == sorted(times)
    done = [(one.op, one.path.rpartition("/")[2]) for one in saving_run.log]
    assert sum(op == "create" and name != ".lock" for op, name in done) == 18
    assert sum(op == "fsync" for op, _ in done) == 18
    assert sum(op == "unlink" for op, _ in done) == 12
    assert all(one.ended_ns > one.began_ns for one in saving_run.log if one.op != "mark")


def test_moments_are_before_every_operation_and_after_all(replacing_run: Run) -> None:
    found = replaying.moments(replacing_run)
    assert len(found) == len(replacing_run.log) + 1
    assert found[-1] == (None, "after everything")
