"""Real processes, killed before each of their operations on files; new ones restore, are killed too, and go on.

    python -m benchmarks.crash.kills DIRECTORY [STRIDE]

Prints one JSON object, :class:`Killed`. For every n: a job dies before its nth operation; what it had reported durable
must be restorable. The job that goes on dies as well, at some other operation; and a third one restores, saves twice,
and everything it leaves must be whole.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch

from benchmarks.crash.job import Job, found_steps, play
from benchmarks.crash.runs import run_worker
from benchmarks.crash.verdict import Promise, judge
from benchmarks.crash.worker import in_child

import _elastates

STEPS = (0, 1, 2, 3, 4)
SECOND_DEATHS = 29
"""The job that goes on dies before operation 1, 2, ... up to this, in turn: inside restore's wake and the next save."""


@dataclass
class Killed:
    """What came of the kills."""

    crash_points: int = 0
    """Processes that were killed."""
    lost: int = 0
    wrong_bytes: int = 0
    ruins: int = 0
    problems: list[str] = field(default_factory=list)


def kill_everywhere(directory: Path, stride: int = 1) -> Killed:
    """Run this module in a process of its own.

    Args:
        directory: scratch, made if missing.
        stride: kill before every so manieth operation.
    """
    return Killed(**json.loads(run_worker("benchmarks.crash.kills", str(directory), str(stride))))


def main() -> None:
    torch.set_num_threads(1)
    scratch, stride = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    found = Killed()
    for nth in itertools.count(1, stride):
        directory = scratch / str(nth)
        directory.mkdir(parents=True)
        survived = _one_point(directory, nth, found)
        shutil.rmtree(directory)
        if survived:
            break
    print(json.dumps(asdict(found)))


def _one_point(root: Path, nth: int, found: Killed) -> bool:
    """Kill before the ``nth`` operation; whether the job came to its end because it has fewer."""
    promise = Promise()
    directory = root / "runs" / "gpt"
    status = _told(partial(play_until, Job(directory=str(directory), steps=STEPS, full_every=3), nth), promise)
    _account(status, f"killed before operation {nth}", directory, promise, found)
    for generation, death in ((1, nth % SECOND_DEATHS + 1), (2, 0)):
        first = max([*found_steps(directory), -1]) + 1
        job = Job(directory=str(directory), steps=(first, first + 1), generation=generation, full_every=3)
        again = _told(partial(play_until, job, death), promise)
        _account(again, f"after operation {nth}, then {death or 'to the end'}", directory, promise, found)
        if death == 0 and (again != 0 or promise.newest != first + 1):
            found.problems.append(f"after operation {nth}: the job that went on ended with {again}")
    return status == 0


def play_until(job: Job, nth: int) -> None:
    """Do a job and die before its ``nth`` operation (0: live); says what it is told on standard output."""

    def say(what: str, step: int) -> None:
        os.write(1, f"{what} {step} {job.generation}\n".encode())

    _elastates.die_before(nth)
    play(job, lambda step: say("begun", step), lambda step: say("durable", step))


def _told(act: Callable[[], None], promise: Promise) -> int:
    """Do ``act`` in a child; what it says goes into ``promise``. Returns its exit status, negative for a signal."""
    reader, writer = os.pipe()

    def act_with_pipe() -> None:
        os.dup2(writer, 1)
        os.close(reader)
        act()

    pid = in_child(act_with_pipe)
    os.close(writer)
    with os.fdopen(reader) as lines:
        for line in lines:
            what, step, generation = line.split()
            if what == "begun":
                promise.possible.setdefault(int(step), set()).add(int(generation))
            else:  # older ones may be on their way out: of them nothing is asked but to be whole if they show
                promise.durable = {int(step): int(generation)}
                promise.newest = int(step)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _account(status: int, where: str, directory: Path, promise: Promise, found: Killed) -> None:
    if status == -signal.SIGKILL:
        found.crash_points += 1
    elif status != 0:
        found.problems.append(f"{where}: exit status {status}")
    reader, writer = os.pipe()
    pid = in_child(lambda: os.write(writer, json.dumps([asdict(p) for p in judge(directory, promise)]).encode()))
    os.close(writer)
    with os.fdopen(reader) as pipe:
        problems = json.loads(pipe.read() or '[{"kind": "lost", "what": "the process that looked crashed"}]')
    os.waitpid(pid, 0)
    for problem in problems:
        setattr(found, problem["kind"], getattr(found, problem["kind"]) + 1)
        found.problems.append(f"{where}: {problem['kind']}: {problem['what']}")


if __name__ == "__main__":
    main()
