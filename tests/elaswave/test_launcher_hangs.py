"""Hangs: the rules, and real processes that hang in every way."""

import os
import sys
import time
from pathlib import Path

import pytest
from launching import Launched, Launcher

from elaswave.launcher import hangs
from elaswave.launcher.hangs import Suspect
from elaswave.marks import MarkReader, Marks, MarkWriter
from elaswave.timeouts import Timeouts

RANK_SCRIPT = Path(__file__).parent / "marking_rank.py"
SECOND_NS = 10**9
TIMEOUTS = Timeouts(30.0)


def marks(*, is_inside: bool = True, num_commits: int = 1, is_paused: bool = False, marked_at_s: int = 100) -> Marks:
    return Marks(
        step=7,
        is_inside=is_inside,
        marked_at_ns=marked_at_s * SECOND_NS,
        num_commits=num_commits,
        is_paused=is_paused,
        paused_for="",
        own_times_s=(),
    )


@pytest.mark.parametrize(
    ("seen", "now_s", "is_traced", "expected"),
    [
        (marks(), 130, False, True),
        (marks(), 129, False, False),
        (marks(is_inside=False), 1000, False, False),  # between two steps
        (marks(num_commits=0), 1000, False, False),  # the first step compiles, loads, connects
        (marks(is_paused=True), 1000, False, False),
        (marks(), 1000, True, False),  # somebody debugs it
    ],
)
def test_silence_counts_only_inside_a_step_after_the_first(
    seen: Marks, now_s: int, is_traced: bool, expected: bool
) -> None:
    assert hangs.is_silent(seen, now_ns=now_s * SECOND_NS, is_traced=is_traced, timeouts=TIMEOUTS) is expected


@pytest.mark.parametrize(
    ("waited_s", "silent", "running", "expected"),
    [
        (1.4, {1, 2}, {0, 1, 2}, []),
        (1.5, {1, 2}, {0, 1, 2}, [1, 2]),  # rank 0 has answered
        (1.5, {1, 2}, {1, 2}, []),  # nobody has: they cannot be told apart
        (3.0, {1, 2}, {1, 2}, [2]),  # the oldest mark
        (1.5, {1, 2}, {1}, [1, 2]),  # alone: nobody else could be at fault
    ],
)
def test_who_answers_nothing_is_at_fault(
    waited_s: float, silent: set[int], running: set[int], expected: list[int]
) -> None:
    suspects = {rank: Suspect(since_ns=SECOND_NS, marked_at_ns=-rank) for rank in (1, 2)}
    now_ns = SECOND_NS + int(waited_s * SECOND_NS)
    at_fault = hangs.find_at_fault(suspects, now_ns=now_ns, timeouts=TIMEOUTS, silent=silent, running=running)
    assert at_fault == expected


def test_a_mark_or_a_debugger_is_an_answer() -> None:
    suspect = Suspect(since_ns=0, marked_at_ns=100 * SECOND_NS)
    assert not hangs.has_answered(suspect, marks(), is_traced=False)
    assert hangs.has_answered(suspect, marks(marked_at_s=101), is_traced=False)
    assert hangs.has_answered(suspect, marks(), is_traced=True)


def test_straggler_scores_are_ratios_to_the_median_of_those_known() -> None:
    assert hangs.straggler_scores({0: 1.0, 1: 1.0, 2: 3.0, 3: 0.0}) == {0: 1.0, 1: 1.0, 2: 3.0}
    assert hangs.straggler_scores({}) == {}


def test_marks_are_read_by_another_process_as_written() -> None:
    writer = MarkWriter()
    reader = MarkReader(os.getpid(), writer.fd)
    assert reader.read().num_commits == 0
    for step in range(3):
        writer.begin(step)
        assert reader.read().is_inside
        writer.computed(step)
        writer.commit(step)
    seen = reader.read()
    assert (seen.step, seen.is_inside, seen.num_commits, len(seen.own_times_s)) == (2, False, 3, 3)
    assert 0 < seen.median_s < 60
    writer.pause("evaluation")
    assert (reader.read().is_paused, reader.read().paused_for) == (True, "evaluation")
    writer.resume()
    assert not reader.read().is_paused
    assert abs(reader.read().marked_at_ns - time.monotonic_ns()) < 60 * SECOND_NS


def test_what_is_no_page_of_marks_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "other").open("wb+") as file:
        file.write(bytes(4096))
        file.flush()
        with pytest.raises(ValueError, match="wrong magic number"):
            MarkReader(os.getpid(), file.fileno())


def run(launch: Launcher, *hows: str, num_ranks: int) -> Launched:
    options = ["--nproc-per-node", str(num_ranks), "--failure-timeout-s", "1"]
    return launch([sys.executable, "-m", "elaswave.launcher", *options, RANK_SCRIPT, *hows])


def test_of_three_silent_ranks_the_one_that_hangs_is_named_dumped_and_killed(launch: Launcher) -> None:
    job = run(launch, "1:gil", "3:pause", num_ranks=4)
    job.wait(expect=0)
    assert "rank 1 (pid" in job.output
    assert "hung in step 2 and was killed" in job.output
    assert {"done 0", "done 2", "done 3"} <= set(job.output.splitlines())
    stack = job.output.partition("stacks of rank 1:")[2]
    assert "in hold_the_gil" in stack.partition("stacks of rank")[0]  # though the GIL is held in a C loop
    assert "stacks of rank 0:" in job.output  # and of those who wait for it
    assert "rank 3 is paused for" in job.output
    assert "now: evaluation" in job.output


def test_a_stopped_process_is_killed_though_it_can_say_nothing(launch: Launcher) -> None:
    job = run(launch, "0:stop", num_ranks=2)
    job.wait(expect=0)
    assert "no stacks of rank 0: it is stopped" in job.output
    assert "done 1" in job.output


def test_where_nobody_answers_one_is_killed_and_the_others_are_free(launch: Launcher) -> None:
    job = run(launch, "0:sleep", "1:silent", num_ranks=2)
    job.wait(expect=0)  # rank 1 made its mark later, and was waiting for rank 0
    assert job.output.count("hung in step 2 and was killed") == 1
    assert "done 1" in job.output


def test_a_group_leaves_its_wait_for_a_rank_that_hangs_and_goes_on(launch: Launcher) -> None:
    options = ["--nproc-per-node", "3", "--failure-timeout-s", "10"]
    job = launch([sys.executable, "-m", "elaswave.launcher", *options, Path(__file__).parent / "hanging_rank.py"])
    job.wait(expect=0)
    assert "hung in step 3 and was killed; 2 of 3 ranks are left" in job.output
    assert job.output.count("recovered: lost (1,), payloads (b'3', b'3')") == 2
    for rank in (0, 2):
        assert f"done {rank}: 2 ranks, sum 2.0" in job.output
