"""``elaswave.join()``: one line that makes a process a rank, whatever launcher started it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from elaswave import agent_link, place, stacks, timeline
from elaswave.chaos import inside
from elaswave.errors import LaunchError
from elaswave.place import Place
from elaswave.run import Run
from elaswave.timeouts import Timeouts


def join(
    backend: str = "elastic", *, timeout_s: float | None = None, environment: Mapping[str, str] = os.environ
) -> Run:
    """Become a rank of the job: read the environment, ``init_process_group``, let the agent watch. Collective.

    Works the same under ``elastates run``, ``torchrun``, ``srun`` and ``mpirun``; started by hand, the process is the
    only rank of its job.

    Args:
        backend: of the default process group: "elastic", "gloo", "nccl" or any other that torch knows.
        timeout_s: of collectives; the backend's default if None.
        environment: for tests.

    Returns:
        The run. Where an agent of ours is there, it sees the marks of ``Run.progress`` and may ask for stacks.

    Raises:
        LaunchError: the environment contradicts itself; the process is a replacement, which only the elastic backend
            can take in; the backend is "mpi"; the process has joined already; the agent does not answer.
    """
    here = place.find(environment)
    if here.attempt and backend != "elastic":
        raise LaunchError(
            f"rank {here.rank} is a replacement (attempt {here.attempt}), and groups of backend {backend!r} take in "
            "nobody: join(backend='elastic'), or start the job without --replace and --spares"
        )
    if backend == "mpi":
        raise LaunchError(
            "backend 'mpi' is not offered: torch's wheels contain no MPI. join(backend='elastic') runs under mpirun as "
            "well; for MPI's own operations use elaswave.transports.mpi.MpiTransport() without join()"
        )
    if dist.is_initialized():
        raise LaunchError("this process has a default process group already: join() once, or run.close() before")
    inside.install()
    timeouts = Timeouts.from_environment(environment)
    link = agent_link.of_process(environment)
    device = _device(here, backend)
    run = Run(here, backend, device, link, timeouts)
    if link:
        link.show(marks_fd=run.marks.fd, stacks_fd=stacks.register(), stacks_signal=stacks.SIGNAL)
    timeline.note("joins", place=here.rank)
    _init(here, backend, None if timeout_s is None else timedelta(seconds=timeout_s))
    return run


def _init(here: Place, backend: str, timeout: timedelta | None) -> None:
    if backend == "elastic":
        importlib.import_module("elaswave.backend")  # registers it
    meeting: dict[str, Any] = (
        {"init_method": f"tcp://{here.master_host}:{here.master_port}"}
        if here.master_host
        else {"store": dist.HashStore()}
    )
    dist.init_process_group(backend, rank=here.rank, world_size=here.num_ranks, timeout=timeout, **meeting)


def _device(here: Place, backend: str) -> torch.device:
    if backend == "gloo" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", here.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
