"""scripts/slurm/train_gpt.sbatch against stand-ins for srun and scontrol that note how they were called."""

import signal
from pathlib import Path

import pytest
from launching import Launched, Launcher

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm" / "train_gpt.sbatch"

# Runs until SIGUSR1 unless told a status; srun passes signals on to its tasks, so here the stand-in is the task.
SRUN = """#!/usr/bin/env bash
echo "srun $*"
trap 'echo "srun got USR1"; exit 0' USR1
trap 'echo "srun got TERM"; exit 143' TERM
if [ -n "${FAKE_STATUS:-}" ]; then exit "$FAKE_STATUS"; fi
mkfifo never; exec 3<>never
echo "srun is running"
read -r <&3
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo node7; echo node8; else echo "scontrol $*"; fi
"""


def start(launch: Launcher, tmp_path: Path, *args: str, **env: str) -> Launched:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "31234", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2"}
    return launch(["bash", SCRIPT, *args], env={"PATH": f"{tmp_path}:/usr/bin:/bin", **job, **env})


def test_one_agent_a_node_meets_the_others_at_the_first(launch: Launcher, tmp_path: Path) -> None:
    job = start(launch, tmp_path, "--config", "my.yaml", FAKE_STATUS="0", PROCS_PER_NODE="3")
    job.wait()
    assert "--nnodes=2 --nproc-per-node=3" in job.output
    assert "--rdzv-id=31234 --rdzv-endpoint=node7:21234" in job.output
    assert "examples/train_gpt.py --config my.yaml" in job.output


@pytest.mark.parametrize("status", ["0", "7"])
def test_a_job_that_ends_by_itself_is_not_requeued(launch: Launcher, tmp_path: Path, status: str) -> None:
    job = start(launch, tmp_path, FAKE_STATUS=status)
    job.wait(expect=int(status))
    assert "requeue" not in job.output


def test_near_the_time_limit_training_is_told_and_the_job_requeued(launch: Launcher, tmp_path: Path) -> None:
    job = start(launch, tmp_path)
    job.wait_for("srun is running")
    job.signal(signal.SIGUSR1)
    job.wait()
    assert "srun got USR1" in job.output
    assert "scontrol requeue 31234" in job.output


def test_sigterm_is_passed_on_and_ends_the_job(launch: Launcher, tmp_path: Path) -> None:
    job = start(launch, tmp_path)
    job.wait_for("srun is running")
    job.signal(signal.SIGTERM)
    job.wait(expect=143)
    assert "srun got TERM" in job.output
    assert "requeue" not in job.output
