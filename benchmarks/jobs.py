"""Jobs under `elastates run` to which benchmarks do things: started, followed by their timelines, ended to the last."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import elaswave
from elaswave.chaos.targets import Target, find_ranks
from elaswave.timeline import VARIABLE, read_milestones

ROOT = Path(__file__).resolve().parents[1]
WAIT_S = 120.0
"""For what must happen, however busy the machine is."""
SELDOM_S = 0.2
"""Between two looks where the moment of the look does not count, because what is looked for has its time noted."""

Agent = subprocess.Popen[bytes]
Found = TypeVar("Found")


@contextmanager
def launch(
    script: Sequence[object], options: Sequence[object], *, timeline: Path, is_quiet: bool = False, **environment: str
) -> Iterator[Agent]:
    """A job of ``script``, its arguments behind it, whose ranks obey the chaos script; yields its agent.

    Args:
        options: of `elastates run`.
        timeline: directory in which every process of the job writes its milestones.
        is_quiet: drop what the agent and the ranks say on standard error; what they print is dropped in any case.
        environment: added to this process's own.
    """
    words = [sys.executable, "-m", "elaswave.launcher", *options, *script]
    importable = [str(Path(elaswave.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    added = {VARIABLE: str(timeline), "ELASWAVE_CHAOS": "1", "PYTHONPATH": os.pathsep.join(filter(None, importable))}
    agent = subprocess.Popen(
        list(map(str, words)),
        env={**os.environ, **added, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if is_quiet else None,
    )
    try:
        yield agent
    finally:
        end(agent)


def end(agent: Agent) -> None:
    """End a job at once, whoever of it still lives. Idempotent; ranks whose agent was killed live on."""
    end_s = time.monotonic() + WAIT_S
    while agent.poll() is None and time.monotonic() < end_s:
        agent.send_signal(signal.SIGTERM)  # a second one means: now; two at a time can be one for who gets them
        with suppress(subprocess.TimeoutExpired):
            agent.wait(0.5)
    agent.kill()
    agent.wait()


def wait_until(look: Callable[[], Found | None], agent: Agent, what: str, every_s: float = 0.02) -> Found:
    """What ``look`` returns, as soon as that is not None.

    Args:
        agent: of the job that must live on meanwhile.
        every_s: between two looks; one that goes through all processes of the machine takes CPU time from the job.

    Raises:
        SystemExit: not within ``WAIT_S``, or the job ended before.
    """
    end_s = time.monotonic() + WAIT_S
    while (found := look()) is None:
        if agent.poll() is not None:
            raise SystemExit(f"the job ended, exit status {agent.returncode}, before this: {what}")
        if time.monotonic() > end_s:
            raise SystemExit(f"not within {WAIT_S:g} s: {what}")
        time.sleep(every_s)
    return found


def wait_for_ranks(agent: Agent, timeline: Path, num_ranks: int, num_steps: int = 1) -> list[Target]:
    """The ranks of a job, by rank, once ``num_ranks`` of its processes have committed so many steps each."""

    def look() -> list[Target] | None:
        pids = [int(file.name.split(".")[0]) for file in timeline.glob("*.timeline.jsonl")]
        ready = [pid for pid in pids if len(commits_of(timeline, pid)) >= num_steps]
        return find_ranks(pid=ready[0]) if len(ready) >= num_ranks else None

    return wait_until(look, agent, f"{num_ranks} ranks have committed {num_steps} steps each", SELDOM_S)


def milestones_of(timeline: Path, pid: int) -> list[dict[str, Any]]:
    """What a process has noted; nothing if there is no such process."""
    return read_milestones(timeline / f"{pid}.timeline.jsonl")


def commits_of(timeline: Path, pid: int) -> list[dict[str, Any]]:
    """The steps that a process has committed, in their order."""
    return [note for note in milestones_of(timeline, pid) if note["what"] == "committed"]
