"""What a recorded or killed job does: restore, then save a few known states, telling what it begins and is told."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import datastates
from datastates.directory import CheckpointDirectory

import _elastates

State = dict[str, Any]
OPTIONS: dict[str, Any] = {"arena_mb": 1, "chunk_bytes": 4096, "commit_timeout_s": 60.0, "read_threads": 1}
"""Blocks of one page, so that a small data file takes several writes."""


FROZEN = 10**6
"""Seed of what never changes, and so is linked and not written again where deltas are taken."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process of a run."""

    directory: str
    steps: tuple[int, ...]
    generation: int = 0
    """Tells the states of one step apart, should several jobs take it."""
    keep_last: int | None = 2
    full_every: int | None = None
    """Deltas in between."""
    backend: str = "threads"
    together: bool = False
    """Take every checkpoint without waiting for the one before."""
    restores: bool = True
    rank: int = 0
    num_ranks: int = 1
    stops_at: tuple[str, int] | None = None
    """(operation, which): in its only checkpoint it is held there, and the process ends as if it had been killed."""
    tier: str | None = None
    """A second directory that checkpoints are copied to."""
    tier_keep_last: int | None = 2
    fails_at: tuple[str, int] | None = None
    """(operation, which): fails in its first checkpoint, once, with EIO."""


def values(step: int, generation: int, num_ranks: int = 1) -> dict[str, torch.Tensor]:
    """Every stored tensor of a step, by its stored name; all but the frozen one differ from step to step."""
    randomly = torch.Generator().manual_seed(1000 * step + generation)
    stored = {
        "model.weight": torch.randn(40, 33, generator=randomly),
        "model.bias": torch.randn(33, generator=randomly).to(torch.bfloat16),
        "steps": torch.tensor(step * 10 + generation),
        "model.frozen": torch.randn(2500, generator=torch.Generator().manual_seed(FROZEN)),
    }
    own = [torch.randn(700, generator=randomly) for _ in range(num_ranks)]
    return stored | {f"per_rank.{rank}.own": tensor for rank, tensor in enumerate(own)}


def state_of(step: int, generation: int, rank: int = 0, num_ranks: int = 1) -> State:
    """The state that a job saves: its tensors, and Python values that say which it is."""
    stored = values(step, generation, num_ranks)
    return {
        "model": {name: stored[f"model.{name}"] for name in ("weight", "bias", "frozen")},
        "steps": stored["steps"],
        "own": datastates.per_rank(stored[f"per_rank.{rank}.own"]),
        "progress": {"step": step, "generation": generation},
    }


def empty_state() -> State:
    """A state for one rank to restore into; nothing in it is like any saved one."""
    state = state_of(0, 0)
    state["model"] = {name: torch.full_like(tensor, torch.nan) for name, tensor in state["model"].items()}
    state["steps"] = torch.tensor(-1)
    state["own"] = datastates.per_rank(torch.full((700,), torch.nan))
    state["progress"] = {"step": -1, "generation": -1}
    return state


def play(
    job: Job,
    begun: Callable[[int], None],
    durable: Callable[[int], None],
    replicated: Callable[[int], None] = lambda step: None,
) -> None:
    """Do the job in this process.

    Args:
        job: what to do.
        begun: called with the step before each checkpoint.
        durable: called with the step once it is durable, before anything else follows from that; also of one that was
            restored.
        replicated: called with the step once its copy in the tier is said to be whole.
    """
    checkpoints = datastates.Checkpointer(
        job.directory,
        keep_last=job.keep_last,
        full_every=job.full_every,
        write_backend=job.backend,
        on_failure="warn",
        replicate_to=datastates.Tier(job.tier, keep_last=job.tier_keep_last, threads=1) if job.tier else None,
        **OPTIONS,
    )
    if job.restores and (next_step := checkpoints.restore(state := state_of(0, 0, job.rank, job.num_ranks))):
        _tell_restored(next_step - 1, state, job, durable)
    _set_fault(job)
    for step in job.steps:
        begun(step)
        taken = checkpoints.checkpoint(step, state_of(step, job.generation, job.rank, job.num_ranks))
        taken.durable.add_done_callback(_telling(durable, step))
        taken.replicated.add_done_callback(_telling(replicated, step))
        if job.stops_at is not None:
            _wait_until_held()
            return
        if not job.together:
            taken.durable.exception(60)
            taken.replicated.exception(60)
    checkpoints.close()


def _tell_restored(step: int, state: State, job: Job, durable: Callable[[int], None]) -> None:
    """What a tier has brought back is durable here, too."""
    if job.tier is not None and state["progress"]["generation"] == job.generation:
        durable(step)


def _telling(durable: Callable[[int], None], step: int) -> Callable[[Any], None]:
    def tell(future: Any) -> None:
        if future.exception() is None:
            durable(step)

    return tell


def _set_fault(job: Job) -> None:
    if (fault := job.stops_at or job.fails_at) is None:
        return
    operation, nth = fault
    if operation == "fsync":  # the first checkpoint syncs the way to the directory before all else, and to the tier's
        nth += sum(_num_ancestors(Path(directory)) for directory in (job.directory, job.tier) if directory is not None)
    _elastates.set_fault(operation, nth=nth, hold=job.stops_at is not None, error=0 if job.stops_at else errno.EIO)


def _num_ancestors(directory: Path) -> int:
    """How many directories are above, on the same file system."""
    device = directory.stat().st_dev
    return sum(parent.stat().st_dev == device for parent in directory.parents)


def _wait_until_held() -> None:
    pause = threading.Event()
    while not _elastates.num_faults_struck():
        pause.wait(0.001)


def found_steps(directory: Path) -> list[int]:
    """Steps that a directory shows."""
    return CheckpointDirectory(directory).steps()
