"""Who gets which rank, environment and log files: pure functions on frozen dataclasses."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

from elaswave.launcher.options import Options


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """An agent as the others know it."""

    node: int
    host: str
    """address by which the others reach it"""
    port: int
    """where it listens for agents; 0: there are no others"""
    store_port: int
    """of the c10d TCPStore that it hosts"""
    num_workers: int
    num_spares: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What all agents of a job agree on before anything starts."""

    job: str
    """name of this run of the job, never used again"""
    secret: str
    nodes: dict[int, Node]
    """by number; nodes that came late have spares only"""

    @property
    def num_ranks(self) -> int:
        return sum(node.num_workers for node in self.nodes.values())

    def ranks_of(self, node: int) -> range:
        """Ranks are numbered through, node by node."""
        first = sum(other.num_workers for other in self.nodes.values() if other.node < node)
        return range(first, first + self.nodes[node].num_workers)

    def with_node(self, node: Node) -> Job:
        """The same job with one more node."""
        return dataclasses.replace(self, nodes={**self.nodes, node.node: node})

    def endpoints(self) -> str:
        """Where all agents listen, for whoever comes later: "10.0.0.1:4000,10.0.0.2:4000"."""
        return ",".join(f"{node.host}:{node.port}" for node in self.nodes.values() if node.port)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerPlan:
    """A process to be started."""

    title: str
    """"rank 3", "spare 0": its prefix on the terminal"""
    command: tuple[str, ...]
    env: dict[str, str]
    out: Path | None
    """file for its standard output; None: the terminal of the agent"""
    err: Path | None


def of_restart(options: Options, number: int) -> Options:
    """Options of the job's run after ``number`` that failed: its logs do not replace theirs."""
    log_dir = options.log_dir and options.log_dir / f"restart-{number}"
    return dataclasses.replace(options, log_dir=log_dir)


def rank_environment(job: Job, *, node: int, rank: int, local_rank: int, attempt: int, master: Node) -> dict[str, str]:
    """What tells a process its place: torchrun's names, so that programs written for it run unchanged."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(job.num_ranks),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(max(job.nodes[node].num_workers, 1)),
        "GROUP_RANK": str(node),
        "GROUP_WORLD_SIZE": str(len(job.nodes)),
        "MASTER_ADDR": master.host,
        "MASTER_PORT": str(master.store_port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": job.job,
        "TORCHELASTIC_RESTART_COUNT": str(attempt),
        "ELASWAVE_ATTEMPT": str(attempt),
    }


def job_environment(job: Job, options: Options, *, agent_address: str, token: str) -> dict[str, str]:
    """What every process of the job gets, spares included; ``token`` names the process to its agent."""
    return {
        "ELASWAVE_JOB": job.job,
        "ELASWAVE_SECRET": job.secret,
        "ELASWAVE_AGENT": agent_address,
        "ELASWAVE_AGENTS": job.endpoints(),
        "ELASWAVE_TOKEN": token,
        "ELASWAVE_FAILURE_TIMEOUT_S": f"{options.timeouts.failure_timeout_s:g}",
        "ELASWAVE_WITNESS": _witness(job, options),
    }


def _witness(job: Job, options: Options) -> str:
    first = job.nodes[min(job.nodes)]
    return f"store://{first.host}:{first.store_port}" if options.witness == "store" else options.witness


def spare_logs(log_dir: Path | None, *, node: int, number: int) -> tuple[Path | None, Path | None]:
    """Files of a spare until it becomes a rank."""
    stem = f"spare-{node}.{number}"
    return (log_dir / f"{stem}.out", log_dir / f"{stem}.err") if log_dir else (None, None)


def rank_logs(log_dir: Path | None, *, rank: int, attempt: int) -> tuple[Path | None, Path | None]:
    """Files of a rank's standard output and error; each process has its own, so that nothing is overwritten."""
    if log_dir is None:
        return None, None
    stem = f"rank-{rank:05d}.{attempt}"
    return log_dir / f"{stem}.out", log_dir / f"{stem}.err"


def worker_command(options: Options) -> tuple[str, ...]:
    """The script under this interpreter; unbuffered, since what a killed process had buffered is lost."""
    return (sys.executable, "-u", *(("-m",) if options.is_module else ()), *options.command)


def leashed_command(options: Options) -> tuple[str, ...]:
    """The same, but ended by the kernel when this process ends."""
    first, *rest = worker_command(options)
    return (first, "-m", "elaswave.launcher.leash", str(os.getpid()), *rest[1:])


def spare_command(options: Options) -> tuple[str, ...]:
    """A process that imports torch and waits for a rank to take over."""
    flag = ("--module",) if options.is_module else ()
    return (sys.executable, "-u", "-m", "elaswave.launcher.spare", *flag, *options.command)


def job_to_wire(job: Job) -> dict[str, Any]:
    """The job without its secret, which both sides have."""
    return {"job": job.job, "nodes": [dataclasses.asdict(node) for node in job.nodes.values()]}


def job_from_wire(message: dict[str, Any], *, secret: str) -> Job:
    """The inverse."""
    nodes = [Node(**node) for node in message["nodes"]]
    return Job(job=message["job"], secret=secret, nodes={node.node: node for node in nodes})
