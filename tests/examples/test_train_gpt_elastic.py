"""The main job on an elastic group, as processes: rank 0 is killed inside a step, a newcomer takes its place."""

import os
import signal
import sys
from pathlib import Path

import pytest
from launching import Launcher
from polling import until
from train_story import read_metrics

from elaswave.chaos.targets import find_ranks
from elaswave.timeline import read_milestones

SCRIPT = Path(__file__).parents[2] / "examples" / "train_gpt.py"
STEPS = 60
TINY = """--width 32 --layers 2 --heads 2 --context 32 --global-batch 16 --micro-batch 2 --eval-every 5 --eval-rows 8"""


def committed(path: Path) -> list[int]:
    return [note["step"] for note in read_milestones(path) if note["what"] == "committed"]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_rank_0_dies_and_the_others_commit_every_step_once(launch: Launcher, tmp_path: Path, text: Path) -> None:
    timeline = tmp_path / "timeline"
    run_dir = tmp_path / "run"
    where = ["--run-dir", run_dir, "--cache-dir", tmp_path / "cache", "--data", text]
    flags = [*TINY.split(), *where, "--steps", str(STEPS), "--backend", "elastic"]
    job = launch(
        [sys.executable, "-P", "-m", "elaswave.launcher", "--nproc-per-node=3", "--replace", SCRIPT, *flags],
        env={"ELASWAVE_TIMELINE": str(timeline), "OMP_NUM_THREADS": "1"},
    )
    until(lambda: any(len(committed(path)) > 5 for path in timeline.glob("*.timeline.jsonl")), timeout_s=120)
    first = next(iter(timeline.glob("*.timeline.jsonl")))
    victim, *_ = find_ranks(pid=int(first.name.split(".")[0]))
    os.kill(victim.pid, signal.SIGKILL)
    job.wait(timeout_s=200)

    assert "rank 0: a new process takes its place" in job.output
    steps = {int(path.name.split(".")[0]): committed(path) for path in timeline.glob("*.timeline.jsonl")}
    assert steps[victim.pid] == list(range(len(steps[victim.pid])))
    assert sum(of_one == list(range(STEPS)) for of_one in steps.values()) == 2  # who lived through it
    lines = read_metrics(run_dir)
    assert {line["step"] for line in lines} >= {0, STEPS - 1}
    assert {line["ranks"] for line in lines if "ranks" in line} >= {3, 2}
    assert lines[-1]["eval_loss"] < lines[0]["loss"]
    assert (run_dir / f"step-{STEPS - 1:08d}").is_dir()
