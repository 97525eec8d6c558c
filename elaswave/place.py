"""Where a process stands in its job, read from the environment of whatever launcher started it. Pure, no torch.

Looked for in this order: elastates run and torchrun (RANK, WORLD_SIZE), MPI (OMPI_*, PMI_*), Slurm's srun (SLURM_*),
none. MPI stands before Slurm because mpirun inside an allocation leaves both, and Slurm's then speak of mpirun itself.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Mapping

from elaswave.errors import LaunchError

FIRST_PORT, NUM_PORTS = 20000, 10000  # of jobs whose launcher offers no meeting point; below those systems hand out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """A rank's place."""

    launcher: str
    """"elastates run", "torchrun", "mpirun", "srun" or "none\""""
    rank: int
    num_ranks: int
    local_rank: int
    """among the ranks of this node"""
    local_num_ranks: int
    master_host: str
    """where the ranks meet at the start; empty: nowhere, this process is alone"""
    master_port: int
    attempt: int = 0
    """how many processes had this rank before"""


def find(environment: Mapping[str, str]) -> Place:
    """The place that the environment speaks of.

    Raises:
        LaunchError: it contradicts itself, or lacks something; the message names the variable.
    """
    for is_there, read in (
        ("RANK" in environment and "WORLD_SIZE" in environment, _torch),
        ("OMPI_COMM_WORLD_RANK" in environment, _open_mpi),
        # Both words: srun --mpi=pmi2 sets the first as well.
        ("PMI_RANK" in environment and "MPI_LOCALRANKID" in environment, _hydra),
        # A batch script itself has SLURM_PROCID too, and is no rank.
        ("SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment, _slurm),
    ):
        if is_there:
            return _checked(read(environment))
    return Place(launcher="none", rank=0, num_ranks=1, local_rank=0, local_num_ranks=1, master_host="", master_port=0)


def first_host(host_list: str) -> str:
    """The first of Slurm's compressed host list: "gpu[07-09,12],login" -> "gpu07"."""
    head = re.match(r"([^,\[]*)(?:\[([^\],\-]*)[^\]]*\]([^,]*))?", host_list)
    return "".join(part or "" for part in head.groups()) if head else host_list


def _torch(environment: Mapping[str, str]) -> Place:
    return Place(
        launcher="elastates run" if "ELASWAVE_AGENT" in environment else "torchrun",
        rank=_number(environment, "RANK"),
        num_ranks=_number(environment, "WORLD_SIZE"),
        local_rank=_number(environment, "LOCAL_RANK", 0),
        local_num_ranks=_number(environment, "LOCAL_WORLD_SIZE", 1),
        master_host=_text(environment, "MASTER_ADDR"),
        master_port=_number(environment, "MASTER_PORT"),
        attempt=_number(environment, "ELASWAVE_ATTEMPT", 0),
    )


def _open_mpi(environment: Mapping[str, str]) -> Place:
    return _mpi(environment, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
                "OMPI_COMM_WORLD_LOCAL_SIZE", environment.get("PMIX_NAMESPACE", ""))  # fmt: skip


def _hydra(environment: Mapping[str, str]) -> Place:
    """MPICH, Intel MPI and their kin."""
    return _mpi(environment, "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS",
                environment.get("PMI_ID", "") + environment.get("HYDI_CONTROL_FD", ""))  # fmt: skip


def _mpi(environment: Mapping[str, str], rank: str, size: str, local_rank: str, local_size: str, job: str) -> Place:
    num_ranks = _number(environment, size)
    num_local = _number(environment, local_size, num_ranks)
    if num_local < num_ranks and "MASTER_ADDR" not in environment:
        raise LaunchError(
            f"{num_local} of {num_ranks} ranks of this MPI job are here, and MPI names no host that all can reach: "
            'mpirun -x MASTER_ADDR="$(hostname)" -x MASTER_PORT=29400 ...'
        )
    return Place(
        launcher="mpirun",
        rank=_number(environment, rank),
        num_ranks=num_ranks,
        local_rank=_number(environment, local_rank, 0),
        local_num_ranks=num_local,
        master_host=environment.get("MASTER_ADDR", "127.0.0.1"),
        master_port=_number(environment, "MASTER_PORT", _port_of(job)),
    )


def _slurm(environment: Mapping[str, str]) -> Place:
    hosts = environment.get("SLURM_STEP_NODELIST") or _text(environment, "SLURM_JOB_NODELIST")
    step = f"{_text(environment, 'SLURM_JOB_ID')}.{environment.get('SLURM_STEP_ID', '')}"
    tasks = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    return Place(
        launcher="srun",
        rank=_number(environment, "SLURM_PROCID"),
        num_ranks=_number(environment, "SLURM_STEP_NUM_TASKS"),
        local_rank=_number(environment, "SLURM_LOCALID", 0),
        local_num_ranks=int(tasks[0]) if tasks else 1,
        master_host=environment.get("MASTER_ADDR") or first_host(hosts),
        master_port=_number(environment, "MASTER_PORT", _port_of(step)),
    )


def _port_of(job: str) -> int:
    """The same on all ranks of a job, and most likely another for another job."""
    return FIRST_PORT + zlib.crc32(job.encode()) % NUM_PORTS


def _text(environment: Mapping[str, str], name: str) -> str:
    if not environment.get(name):
        raise LaunchError(f"{name} is not set, but other variables of its launcher are")
    return environment[name]


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    if default is not None and not environment.get(name):
        return default
    text = _text(environment, name)
    if not text.isdigit():
        raise LaunchError(f"{name} must be a number, got {text!r}")
    return int(text)


def _checked(place: Place) -> Place:
    if place.rank >= place.num_ranks:
        raise LaunchError(f"rank {place.rank} of {place.num_ranks} ({place.launcher}) is no rank of the job")
    return place
