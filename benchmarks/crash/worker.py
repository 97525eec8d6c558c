"""The process that runs jobs: it imports what they need once, then forks one child for each.

    python -m benchmarks.crash.worker REQUEST.json

The request is a list of phases, one after the other; a phase is a list of jobs, run at the same time. Every job's log
goes to ``<request>.<phase>.<number>.log``. The parent runs no thread, so forking is safe.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.crash.job import Job, play
from benchmarks.crash.log import dump, recording

import _elastates


def in_child(act: Callable[[], object]) -> int:
    """Fork; the child does ``act`` and ends, without the interpreter's teardown. Returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        act()
        status = 0
    except BaseException:  # noqa: BLE001  (nobody above would see it)
        traceback.print_exc()
    os._exit(status)


def ended_well(pid: int) -> bool:
    """Wait for a child."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def record(job: Job, log: Path, store: Path) -> None:
    """Do the job and keep its log."""
    if job.num_ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=job.rank, world_size=job.num_ranks)
    with recording() as take:
        play(job, *(partial(mark, what, job=job) for what in ("begun", "durable", "replicated")))
        dump(take(), log)


def mark(what: str, step: int, job: Job) -> None:
    """Note what the job is told, in the order of operations."""
    _elastates.record_mark(f"{what} {step} {job.generation}")


def run_phase(jobs: list[dict[str, Any]], request: Path, phase: int) -> bool:
    """Run jobs at the same time; whether all went well."""
    store = Path(f"{request}.{phase}.store")
    children = []
    for number, fields in enumerate(jobs):
        log = Path(f"{request}.{phase}.{number}.log")
        children.append(in_child(partial(record, Job(**fields), log, store)))
    ended = [ended_well(child) for child in children]  # of each, also after a failure
    return all(ended)


def main() -> None:
    torch.set_num_threads(1)
    request = Path(sys.argv[1])
    for phase, jobs in enumerate(json.loads(request.read_text())):
        if not run_phase(jobs, request, phase):
            sys.exit(f"a job of phase {phase} failed")


if __name__ == "__main__":
    main()
