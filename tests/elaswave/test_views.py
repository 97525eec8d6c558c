"""Views with real processes: whoever is left agrees, edits the group in place, and reduces rightly again."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from launching import Launched, Launcher

JOB = Path(__file__).parent / "views_job.py"
EXIT_FENCED = 86


def told(rank: Launched, word: str = "RESULT") -> list[dict[str, Any]]:
    return [json.loads(line) for line in re.findall(rf"^{word} (.*)$", rank.output, re.MULTILINE)]


def start(launch: Launcher, port: int, scenario: str, argument: object, num_ranks: int, **env: str) -> list[Launched]:
    return launch.ranks(JOB, scenario, json.dumps(argument), num_ranks=num_ranks, port=port, env=env)


def check(result: dict[str, Any], members: list[int], me: int) -> None:
    """A result of ``recover()`` on the member whose first rank is ``me``."""
    place = [members.index(me), len(members)]
    assert result["members"] == members
    assert result["total"] == sum(2**member for member in members)
    assert result["place"] == place + place
    assert result["epochs_agree"]


@pytest.mark.parametrize(
    ("num_ranks", "rounds"),
    [(4, [[0, 3]]), (4, [[0], [2], [1]])],
    ids=["two of four", "one after another down to one"],
)
def test_survivors_go_on(launch: Launcher, free_port: int, num_ranks: int, rounds: list[list[int]]) -> None:
    ranks = start(launch, free_port, "killed", rounds, num_ranks)
    survivors = [rank for rank in range(num_ranks) if not any(rank in victims for victims in rounds)]
    for me, rank in enumerate(ranks):
        rank.wait(expect=0 if me in survivors else -signal.SIGKILL)
    for me in survivors:
        results = told(ranks[me])
        alive = list(range(num_ranks))
        for result, victims in zip(results, rounds, strict=True):
            assert result["lost"] == [alive.index(victim) for victim in victims]
            alive = [rank for rank in alive if rank not in victims]
            check(result, alive, me)


@pytest.mark.parametrize("moment_ms", [0.3, 2])
def test_members_may_die_while_the_others_agree(launch: Launcher, free_port: int, moment_ms: float) -> None:
    ranks = start(launch, free_port, "killed_in_agreement", {"1": moment_ms, "3": 2 * moment_ms}, 5)
    for me in (2, 4):
        ranks[me].wait()
        check(told(ranks[me])[-1], [2, 4], me)
    for me in (0, 1, 3):
        ranks[me].wait(expect=-signal.SIGKILL)


@pytest.mark.parametrize("sleeper", [0, 2])
def test_a_suspended_rank_is_killed_by_the_others(launch: Launcher, free_port: int, sleeper: int) -> None:
    ranks = start(launch, free_port, "stopped", sleeper, 3, ELASWAVE_FAILURE_TIMEOUT_S="2")
    others = [me for me in range(3) if me != sleeper]
    for me in others:
        ranks[me].wait()
        check(told(ranks[me])[-1], others, me)
    ranks[sleeper].signal(signal.SIGCONT)
    assert ranks[sleeper].wait(expect=None) in (-signal.SIGKILL, EXIT_FENCED)
    assert not told(ranks[sleeper], "BACK")


def test_a_newcomer_gets_in_and_outlives_a_founder(launch: Launcher, free_port: int) -> None:
    founders = start(launch, free_port, "grown", None, 2)
    env = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    env |= {"MASTER_PORT": str(free_port), "FIRST_RANK": "5", "ELASWAVE_ATTEMPT": "1"}
    newcomer = launch.python(JOB, "grown", "null", env=env)
    founders[0].wait(expect=-signal.SIGKILL)
    for me, rank in ((1, founders[1]), (5, newcomer)):
        rank.wait()
        assert told(rank, "STATE") == [{"total": 0b100011, "state": 7000.0}]
        check(told(rank)[0], [1, 5], me)
    assert told(founders[1], "GROWN") == [{"joined": [2], "ranks": [0, 1, None]}]


def test_what_cannot_be_agreed_says_why(launch: Launcher, free_port: int) -> None:
    ranks = start(launch, free_port, "refused", None, 2)
    for rank in ranks:
        rank.wait()
    texts = told(ranks[0])[0]["texts"]
    assert "sub-groups are made anew" in texts[0]
    assert "expected the default process group of backend 'elastic'" in texts[1]
    assert "4096 bytes, this one has 5000" in texts[2]
    assert "waiting for rank 1" in texts[3]
