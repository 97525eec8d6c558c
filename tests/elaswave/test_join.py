"""elaswave.join(): where a process stands, from every launcher's environment; for real under those that are here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launching import Launched, Launcher

from elaswave import LaunchError, place

RANK_SCRIPT = Path(__file__).parent / "joining_rank.py"

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
TORCHRUN |= {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
SRUN = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
SRUN |= {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[07-08]"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
OPEN_MPI |= {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "PMIX_NAMESPACE": "prterun-host-123@1"}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}


@pytest.mark.parametrize(
    ("environment", "launcher", "expected"),
    [
        (TORCHRUN, "torchrun", (5, 8, 1, 4, "10.0.0.1")),
        ({**TORCHRUN, "ELASWAVE_AGENT": "@a"}, "elastates run", (5, 8, 1, 4, "10.0.0.1")),
        (SRUN, "srun", (5, 8, 1, 4, "gpu07")),
        ({**SRUN, **TORCHRUN}, "torchrun", (5, 8, 1, 4, "10.0.0.1")),  # torchrun under srun
        ({**SRUN, **OPEN_MPI}, "mpirun", (1, 4, 1, 4, "127.0.0.1")),  # mpirun inside an allocation
        ({**SRUN, "PMI_RANK": "5"}, "srun", (5, 8, 1, 4, "gpu07")),  # srun --mpi=pmi2
        (HYDRA, "mpirun", (1, 4, 1, 4, "127.0.0.1")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "77"}, "none", (0, 1, 0, 1, "")),  # a batch script
        ({}, "none", (0, 1, 0, 1, "")),
    ],
)
def test_the_place_is_read_from_the_launchers_environment(
    environment: dict[str, str], launcher: str, expected: tuple[int, int, int, int, str]
) -> None:
    here = place.find(environment)
    assert here.launcher == launcher
    assert (here.rank, here.num_ranks, here.local_rank, here.local_num_ranks, here.master_host) == expected


def test_ranks_of_one_job_meet_at_one_port_and_jobs_at_different_ones() -> None:
    ports = {place.find({**SRUN, "SLURM_PROCID": str(rank)}).master_port for rank in range(8)}
    assert len(ports) == 1
    assert place.find({**SRUN, "SLURM_STEP_ID": "1"}).master_port not in ports
    assert place.find({**SRUN, "MASTER_PORT": "999"}).master_port == 999


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({**TORCHRUN, "RANK": "8"}, "rank 8 of 8 .*torchrun.* is no rank of the job"),
        ({**TORCHRUN, "RANK": "first"}, "RANK must be a number, got 'first'"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, "mpirun -x MASTER_ADDR"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(environment: dict[str, str], complaint: str) -> None:
    with pytest.raises(LaunchError, match=complaint):
        place.find(environment)


@pytest.mark.parametrize(
    ("host_list", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("gpu[07-09,12],login", "gpu07"), ("rack[3]-a,b", "rack3-a"), ("n[1,3]", "n1")],
)
def test_the_first_of_slurms_host_list(host_list: str, first: str) -> None:
    assert place.first_host(host_list) == first


def test_a_replacement_is_refused_by_backends_that_take_in_nobody() -> None:
    import elaswave

    with pytest.raises(LaunchError, match=r"replacement .attempt 2.*join.backend='elastic'"):
        elaswave.join("gloo", environment={**TORCHRUN, "ELASWAVE_ATTEMPT": "2"})


def found(job: Launched) -> list[dict[str, Any]]:
    lines = [line[line.index("{") :] for line in job.output.splitlines() if '"launcher"' in line]
    return sorted(map(json.loads, lines), key=lambda one: one["rank"])


def test_join_under_elastates_run(launch: Launcher) -> None:
    job = launch([sys.executable, "-m", "elaswave.launcher", "--nproc-per-node", "2", RANK_SCRIPT])
    job.wait()
    ranks = found(job)
    assert [(one["rank"], one["num_ranks"], one["local_rank"]) for one in ranks] == [(0, 2, 0), (1, 2, 1)]
    assert all(one["total"] == [3.0] * 3 and one["has_agent"] and one["epoch"] == 0 for one in ranks)
    assert all(one["launcher"] == "elastates run" and one["mark_us"] > 0 for one in ranks)
    assert "backend 'gloo' cannot be edited: elaswave.join(backend='elastic')" in job.output


def test_join_under_torchrun_and_srun_and_alone(launch: Launcher) -> None:
    torchrun = launch.torchrun(RANK_SCRIPT, num_ranks=1)
    slurm = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": str(id(launch) % 10**6)}
    srun = [launch.python(RANK_SCRIPT, env={**slurm, "SLURM_PROCID": str(rank)}) for rank in range(2)]
    alone = launch.python(RANK_SCRIPT)
    for job, launcher, num_ranks in (
        (torchrun, "torchrun", 1),
        (srun[0], "srun", 2),
        (srun[1], "srun", 2),
        (alone, "none", 1),
    ):
        job.wait()
        (one,) = found(job)
        assert (one["launcher"], one["num_ranks"], one["has_agent"]) == (launcher, num_ranks, False)
        assert one["total"] == [num_ranks * (num_ranks + 1) / 2] * 3


def test_importing_elaswave_and_its_command_line_imports_no_torch() -> None:
    modules = "elaswave, elaswave.cli, elaswave.agent_link, elaswave.launcher.options"
    code = f"import {modules}, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
