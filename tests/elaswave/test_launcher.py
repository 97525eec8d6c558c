"""``elastates run`` on one node: real processes, real signals."""

import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest
from launching import Launched, Launcher
from polling import until

RANK_SCRIPT = Path(__file__).parent / "launched_rank.py"
ROOT = Path(__file__).parents[2]


def run(launch: Launcher, *words: str, cwd: Path | None = None) -> Launched:
    """``elastates run`` with options, then the arguments of the test's rank script behind "--"."""
    split = words.index("--")
    command = [sys.executable, "-m", "elaswave.launcher", *words[:split], str(RANK_SCRIPT), *words[split + 1 :]]
    return launch(command)


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_survivors_live_hear_of_the_death_and_finish(launch: Launcher, tmp_path: Path) -> None:
    options = ("--nproc-per-node", "3", "--log-dir", "logs")
    job = run(launch, *options, "--", "0:joined,kill", "1:death=0,stdin", "2:death=0")
    job.wait(expect=0)
    for rank in (1, 2):
        assert re.search(rf"\[rank {rank}\] heard death .*'rank': 0.*'id': 'member-0'.*'status': 137", job.output)
        assert "heard joined {'rank': 0, 'node': 0, 'id': 'member-0', 'handle': 'handle-of-0'}" in job.output
        assert f"done {rank}" in (tmp_path / "logs" / f"rank-0000{rank}.0.out").read_text()
    assert "[rank 1] stdin ''" in job.output
    assert "rank 0 (pid" in job.output
    assert "was killed by SIGKILL; 2 of 3 ranks are left" in job.output
    assert "2 of 3 ranks finished; exit status 0" in job.output


def test_too_few_are_left_ends_the_others_with_the_status_of_the_one_that_failed(launch: Launcher) -> None:
    job = run(launch, "--nproc-per-node", "3", "--min-ranks", "3", "--", "1:joined,exit=7", "all:child,signal")
    job.wait(expect=7)
    assert "fewer than --min-ranks=3 are left" in job.output
    assert not job.pids()  # not even the children of the ranks


def test_the_status_of_ranks_that_all_fail_is_the_jobs(launch: Launcher) -> None:
    run(launch, "--nproc-per-node", "2", "--", "all:exit=87").wait(expect=87)


def test_a_fenced_rank_is_killed_with_all_it_started(launch: Launcher) -> None:
    job = run(launch, "--nproc-per-node", "2", "--", "0:joined,fence=1,death=1", "1:child,signal")
    child = int(job.wait_for(r"child (\d+)")[1])
    job.wait(expect=0)
    assert "was fenced" in job.output
    until(lambda: not is_running(child))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_the_workers_whose_answer_is_the_jobs(launch: Launcher, number: signal.Signals) -> None:
    job = run(launch, "--nproc-per-node", "2", "--", "all:joined,signal")
    for rank in range(2):
        job.wait_for(f"heard joined .*'rank': {rank}")
    job.signal(number)
    job.wait(expect=0)
    assert {"done 0", "done 1"} <= set(job.output.splitlines())


def test_a_second_signal_ends_workers_that_do_not_listen(launch: Launcher) -> None:
    job = run(launch, "--nproc-per-node", "1", "--", "all:death=9")
    job.wait_for("pid .* of rank 0")
    job.signal(signal.SIGTERM)
    job.wait_for("SIGTERM received")
    job.signal(signal.SIGTERM)
    job.wait(expect=137)


def test_workers_go_on_when_their_agent_is_killed(launch: Launcher) -> None:
    job = run(launch, "--nproc-per-node", "2", "--", "all:agent_ended")
    pids = [int(job.wait_for(rf"pid (\d+) of rank {rank}")[1]) for rank in range(2)]
    assert all(os.getpgid(pid) == pid for pid in pids)
    job.signal(signal.SIGKILL)
    job.wait_for("done 0")
    job.wait_for("done 1")
    until(lambda: not job.pids())


def test_leashed_workers_end_with_their_agent(launch: Launcher) -> None:
    job = run(launch, "--nproc-per-node", "2", "--leash", "--", "all:death=9")
    for rank in range(2):
        job.wait_for(f"pid .* of rank {rank}")
    job.signal(signal.SIGKILL)
    until(lambda: not job.pids())


def test_a_signal_while_the_agents_meet_ends_the_waiting(launch: Launcher, free_port: int) -> None:
    meeting = ["--nnodes", "2", "--master", f"127.0.0.1:{free_port}"]
    job = launch([sys.executable, "-m", "elaswave.launcher", *meeting, RANK_SCRIPT], env={"ELASWAVE_SECRET": "5ec4e7"})
    until(lambda: is_listening(free_port))
    job.signal(signal.SIGTERM)
    job.wait(expect=128 + signal.SIGTERM)


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            ["--nproc-per-node", "2", "--min-ranks", "3", "x.py"],
            "--min-ranks must be at most --nproc-per-node=2, got 3",
        ),
        (["--nnodes", "2", "x.py"], "several nodes need --master HOST:PORT"),
        (["--nnodes", "2", "--master", "h:1", "x.py"], "ELASWAVE_SECRET"),
        (["--failure-timeout-s", "-1", "x.py"], "failure_timeout_s must be a positive number"),
        (["nowhere.py"], "SCRIPT must be a file that is there, got 'nowhere.py'"),
        (["--nproc-per-node", "many", "x.py"], "must be a number or 'gpu', got 'many'"),
    ],
)
def test_wrong_usage_names_what_is_wrong(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from elaswave.cli import main

    monkeypatch.delenv("ELASWAVE_SECRET", raising=False)
    assert main(["run", *words]) == 2
    assert complaint in capsys.readouterr().err
