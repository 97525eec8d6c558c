"""Members that nobody can kill: who is left out ends by itself, with an exit code that says why."""

import signal
import socket
from pathlib import Path

import pytest
import torch.distributed as dist
from launching import Launched, Launcher

from elaswave import witness
from elaswave.errors import LaunchError
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


def test_a_store_is_a_witness() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    named = {"ELASWAVE_WITNESS": f"store://127.0.0.1:{store.port}", "ELASWAVE_FAILURE_TIMEOUT_S": "20"}
    here, there = witness.from_environment(named), witness.from_environment(named)
    assert here
    assert there
    assert here.compare_and_set("a/1", b"", b"\0x") == (True, b"\0x")
    assert there.compare_and_set("a/1", b"", b"y") == (False, b"\0x")
    assert there.compare_and_set("a/1", b"\0x", b"z") == (True, b"z")
    assert here.compare_and_set("a/1", b"\0x", b"y") == (False, b"z")
    assert here.compare_and_set("a/2", b"", b"y") == (True, b"y")
    with pytest.raises(LaunchError, match="expected ELASWAVE_WITNESS=store://HOST:PORT, got 'store://nowhere'"):
        witness.from_environment({"ELASWAVE_WITNESS": "store://nowhere"})
    gone = witness.StoreWitness("127.0.0.1", free_port_of_nobody(), timeout_s=1)
    with pytest.raises(OSError, match="cannot be reached"):
        gone.compare_and_set("a/1", b"", b"x")


def free_port_of_nobody() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_file_is_a_witness(tmp_path: Path) -> None:
    here, there = FileWitness(tmp_path / "w"), FileWitness(tmp_path / "w")
    assert here.compare_and_set("a/1", b"", b"x") == (True, b"x")
    assert there.compare_and_set("a/1", b"", b"y") == (False, b"x")
    assert there.compare_and_set("a/2", b"", b"y") == (True, b"y")
    with (tmp_path / "w").open("ab") as file:
        file.write(b'{"a/1": "7a')  # its writer died
    assert here.compare_and_set("a/1", b"x", b"z") == (True, b"z")
    assert there.compare_and_set("a/1", b"", b"") == (False, b"z")
