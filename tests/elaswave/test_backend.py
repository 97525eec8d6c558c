"""Backend "elastic" against gloo in the same processes, and what a death does to it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from launching import Launcher

JOB = Path(__file__).parent / "backend_job.py"


def run_job(launch: Launcher, port: int, *scenarios: str, num_ranks: int) -> list[list[dict[str, Any]]]:
    """Every rank's results, in order; the job must succeed."""
    ranks = launch.ranks(JOB, *scenarios, num_ranks=num_ranks, port=port)
    for rank in ranks:
        rank.wait(timeout_s=110)
    return [results_of(rank.output) for rank in ranks]


def results_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in re.findall(r"^RESULT \d+ (.*)$", output, re.MULTILINE)]


def test_every_operation_gives_what_gloo_gives(launch: Launcher, free_port: int) -> None:
    results = run_job(launch, free_port, "operations", "against_numbers", num_ranks=3)
    assert results == [[{"num_cases": 3 * (4 * 13 + 4 * 22) + 4}, {"passed": True}]] * 3


def test_what_cannot_be_done_is_refused_and_the_group_lives_on(launch: Launcher, free_port: int) -> None:
    for (refused,) in run_job(launch, free_port, "refusals", num_ranks=2):
        assert refused["after"] == [2.0] * 3
        for text, expected in zip(
            refused["texts"],
            (
                "sparse tensors are not supported",
                "there is no reduction bxor of float32",
                "there is no reduction of them",
                "all-gather from 4 elements to 6",
                "expected 2 split sizes, got 3",
                "a first dimension of 3 cannot be cut into 2 equal parts",
            ),
            strict=True,
        ):
            assert expected in text


def test_a_killed_rank_is_named_to_all_who_wait(launch: Launcher, free_port: int) -> None:
    *survivors, victim = launch.ranks(JOB, "killed", num_ranks=4, port=free_port)
    victim.wait(expect=-9)
    for rank, survivor in enumerate(survivors):
        survivor.wait()
        (told,) = results_of(survivor.output)
        expected = {"all_reduce": [[3], 1], "barrier": [[3], 1]}
        if rank == 0:
            expected["sub"] = [[1], 1]  # in a group of two, it was rank 1
        assert told["failures"] == expected


def test_a_receive_that_nobody_answers_ends_in_time(launch: Launcher, free_port: int) -> None:
    for (told,) in run_job(launch, free_port, "unanswered", num_ranks=2):
        assert re.search(r"rank [01] waited longer than 10 s for (rank 1|anybody) to send", told["text"])


def test_an_edit_changes_rank_and_size_in_place(launch: Launcher, free_port: int) -> None:
    ranks = launch.ranks(JOB, "edited", num_ranks=4, port=free_port)
    ranks[1].wait(expect=-9)
    for new_rank, old_rank in enumerate((0, 2, 3)):
        ranks[old_rank].wait()
        (told,) = results_of(ranks[old_rank].output)
        assert told == {
            "rank": new_rank,
            "size": 3,
            "ranks": [0, 1, 2],
            "ddp_size": 3,
            "backend_rank": new_rank,
            "sum": 0.0 + 2 + 3,
            "gradients": [(0 + 1 + 2 + 3) / 4, pytest.approx((0 + 2 + 3) / 3)],
            "in_sub": 1.0 if new_rank == 1 else 2.0,
        }
