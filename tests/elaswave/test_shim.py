"""elaswave.shim under stock torchrun, which alone would end everybody when one dies."""

import re
import sys
from pathlib import Path

from launching import Launched, Launcher
from polling import until

from elaswave.chaos import acts
from elaswave.chaos.targets import find_ranks

RANK_SCRIPT = Path(__file__).parent / "launched_rank.py"


def torchrun(launch: Launcher, num_ranks: int, *words: str) -> Launched:
    agent = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    return launch([sys.executable, *agent, "-m", "elaswave.shim", *words])


def test_survivors_live_under_torchrun(launch: Launcher) -> None:
    job = torchrun(launch, 3, str(RANK_SCRIPT), "0:joined,signal", "1:death=0", "2:death=0")
    pids = [int(job.wait_for(rf"pid (\d+) of rank {rank}")[1]) for rank in range(3)]
    victims = find_ranks(pid=pids[0])  # what chaos strikes are the trainers, not their shims
    assert [victim.pid for victim in victims] == pids
    assert acts._agent_of(victims[0]) == victims[0].parent
    acts.kill(victims[0], acts.Surroundings())
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


def test_the_shim_says_what_it_needs(launch: Launcher, free_port: int) -> None:
    alone = launch([sys.executable, "-m", "elaswave.shim", RANK_SCRIPT])
    alone.wait(expect=2)
    assert "it was started by: none" in alone.output
    env = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)}
    env["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    astray = launch([sys.executable, "-m", "elaswave.shim", "--failure-timeout-s", "0.1", RANK_SCRIPT], env=env)
    astray.wait(expect=2)
    assert f"elaswave.shim: torchrun's store at 127.0.0.1:{free_port} (MASTER_ADDR, MASTER_PORT)" in astray.output
