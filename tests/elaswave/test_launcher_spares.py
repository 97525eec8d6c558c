"""Dead ranks replaced: by spares that wait warm, and by new processes."""

import os
import re
import signal
import sys
from pathlib import Path

from launching import Launched, Launcher
from polling import until

from elaswave import exits

RANK_SCRIPT = Path(__file__).parent / "replaced_rank.py"
WAITING_SCRIPT = Path(__file__).parent / "waiting_rank.py"


def test_a_warm_spare_takes_the_place_then_new_processes_do(launch: Launcher, tmp_path: Path) -> None:
    options = ["--nproc-per-node", "2", "--spares", "1", "--replace", "--max-replacements", "1", "--log-dir", "logs"]
    job = launch([sys.executable, "-m", "elaswave.launcher", *options, RANK_SCRIPT, "an argument"])
    spare = int(job.wait_for(r"spare 0.0 \(pid (\d+)\) is warm")[1])
    first = int(job.wait_for(r"pid (\d+) is rank 1 attempt 0")[1])
    os.kill(first, signal.SIGKILL)
    second = int(job.wait_for(r"\[rank 1\] pid (\d+) is rank 1 attempt 1")[1])
    assert second == spare
    job.wait_for(rf"rank 1: a spare \(pid {second}\) takes its place")
    os.kill(second, signal.SIGKILL)
    third = int(job.wait_for(r"\[rank 1\] pid (\d+) is rank 1 attempt 2")[1])
    os.kill(third, signal.SIGKILL)  # the one replacement that is allowed has been made
    job.wait(expect=0)
    assert re.search(rf"rank 1 \(pid {third}\) was killed by SIGKILL; 1 of 2 ranks are left", job.output)
    assert "attempt 1 spare 1 torch True argv ['an argument']" in (tmp_path / "logs" / "rank-00001.1.out").read_text()
    assert "attempt 2 spare 0 torch False argv ['an argument']" in (tmp_path / "logs" / "rank-00001.2.out").read_text()
    assert not job.pids()


def test_a_spare_ends_with_its_agent(launch: Launcher) -> None:
    options = ["--nproc-per-node", "1", "--spares", "1"]
    job = launch([sys.executable, "-m", "elaswave.launcher", *options, RANK_SCRIPT])
    rank = int(job.wait_for(r"pid (\d+) is rank 0 attempt 0")[1])
    job.signal(signal.SIGKILL)
    os.kill(rank, signal.SIGKILL)
    job.wait(expect=-signal.SIGKILL)
    until(lambda: not job.pids())


def test_when_only_newcomers_are_left_the_job_begins_anew_as_often_as_it_may(launch: Launcher) -> None:
    options = ["--nproc-per-node", "2", "--replace", "--max-restarts", "1"]
    job = launch([sys.executable, "-m", "elaswave.launcher", *options, WAITING_SCRIPT])
    kill_all(job, num_runs=1)
    kill_all(job, num_runs=2)
    job.wait(expect=exits.STATE_LOST)
    assert job.output.count("the job begins anew; 0 restarts are left") == 1
    assert not job.pids()


def kill_all(job: Launched, *, num_runs: int) -> None:
    """Kill both ranks of the job's run with this number, whose replacements then wait for nobody."""
    until(lambda: job.output.count("is in as rank") == 2 * num_runs)
    for pid in re.findall(r"pid (\d+) is in as rank", job.output)[-2:]:
        os.kill(int(pid), signal.SIGKILL)
    until(lambda: job.output.count("all that live wait for ranks that are dead to let them in") == num_runs)
