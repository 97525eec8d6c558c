"""Members that nobody can kill: who is left out ends by itself, with an exit code that says why."""

import signal
from pathlib import Path

from launching import Launched, Launcher

from elaswave.witness import FileWitness

JOB = Path(__file__).parent / "views_links_job.py"
EXIT_FENCED, EXIT_NO_QUORUM = 86, 87
ENVIRONMENT = {"ELASWAVE_FAILURE_TIMEOUT_S": "2"}


def start(launch: Launcher, directory: Path, num_ranks: int, sleepers: list[int], *more: Path) -> list[Launched]:
    """Members that have met, of whom some have been suspended since."""
    ranks = []
    for rank in range(num_ranks):
        env = ENVIRONMENT | ({"SLEEPS": "1"} if rank in sleepers else {})
        ranks.append(launch.python(JOB, str(rank), str(num_ranks), directory, *more, env=env))
    return ranks


def wake_up_fenced(sleeper: Launched) -> None:
    sleeper.signal(signal.SIGCONT)
    sleeper.wait(expect=EXIT_FENCED)
    assert "excluded from group all: the others agreed on a view without it" in sleeper.output


def test_a_sleeper_finds_itself_fenced_when_it_wakes_up(launch: Launcher, tmp_path: Path) -> None:
    ranks = start(launch, tmp_path, 3, [1])
    for rank in (0, 2):
        ranks[rank].wait_for(r"AGREED 2 \[0, 2\]")
    wake_up_fenced(ranks[1])
    (tmp_path / "over").touch()
    for rank in (0, 2):
        ranks[rank].wait()


def test_half_of_the_members_stop_together_without_a_witness(launch: Launcher, tmp_path: Path) -> None:
    ranks = start(launch, tmp_path, 4, [2, 3])
    for rank in ranks[:2]:  # the second is told by the first: alone it would have to wait once more
        rank.wait(expect=EXIT_NO_QUORUM)
        assert "only 2 of 4 members are together; nobody hears of rank 2, 3" in rank.output


def test_half_of_the_members_go_on_with_a_witness(launch: Launcher, tmp_path: Path) -> None:
    ranks = start(launch, tmp_path, 2, [0], tmp_path / "witness")
    ranks[1].wait_for(r"AGREED 2 \[1\]")
    wake_up_fenced(ranks[0])
    (tmp_path / "over").touch()
    ranks[1].wait()


def test_a_file_is_a_witness(tmp_path: Path) -> None:
    here, there = FileWitness(tmp_path / "w"), FileWitness(tmp_path / "w")
    assert here.compare_and_set("a/1", b"", b"x") == (True, b"x")
    assert there.compare_and_set("a/1", b"", b"y") == (False, b"x")
    assert there.compare_and_set("a/2", b"", b"y") == (True, b"y")
    with (tmp_path / "w").open("ab") as file:
        file.write(b'{"a/1": "7a')  # its writer died
    assert here.compare_and_set("a/1", b"x", b"z") == (True, b"z")
    assert there.compare_and_set("a/1", b"", b"") == (False, b"z")
