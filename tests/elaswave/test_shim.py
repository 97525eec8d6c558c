"""elaswave.shim under stock torchrun, which alone would end everybody when one dies."""

import re
import sys
from pathlib import Path

from launching import Launched, Launcher
from polling import until

RANK_SCRIPT = Path(__file__).parent / "launched_rank.py"


def torchrun(launch: Launcher, num_ranks: int, *words: str) -> Launched:
    agent = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    return launch([sys.executable, *agent, "-m", "elaswave.shim", *words])


def test_survivors_live_under_torchrun(launch: Launcher) -> None:
    job = torchrun(launch, 3, str(RANK_SCRIPT), "0:joined,kill", "1:death=0", "2:death=0")
    job.wait(expect=0)
    assert re.search(r"heard death .*'rank': 0.*'id': 'member-0'", job.output)
    assert {"done 1", "done 2"} <= set(job.output.splitlines())
    assert not job.pids()


def test_too_few_left_fails_torchruns_job_and_leaves_nobody(launch: Launcher) -> None:
    job = torchrun(launch, 2, "--min-ranks", "2", str(RANK_SCRIPT), "0:joined,exit=7", "1:joined,signal")
    job.wait_for("fewer than --min-ranks=2 are left")
    job.wait(expect=1)  # torchrun's own way of reporting any failure
    assert "exitcode  : 7" in job.output
    until(lambda: not job.pids())


def test_the_shim_says_what_it_needs(launch: Launcher) -> None:
    alone = launch([sys.executable, "-m", "elaswave.shim", RANK_SCRIPT])
    alone.wait(expect=2)
    assert "it was started by: none" in alone.output
