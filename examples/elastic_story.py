"""The second act, a minute on two cores: ranks die while they train, rank 0 first, and the job goes on.

    python examples/elastic_story.py            (part of: make train)

1. A job on four processes with backend "elastic", never interrupted.
2. The same job. Rank 0 gets SIGKILL inside a step, later another rank; the survivors go on with the step they were in,
   and new processes take the places of the dead.

Succeeds only if the job ended by itself with 0, somebody who lived through it all committed every step exactly once,
and the losses are those of the first job but for rounding. Flags that are not listed below go to train_gpt.py.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from train_story import HERE, kill_tree, read_metrics, say

from elaswave.chaos.targets import Target, find_ranks
from elaswave.timeline import read_milestones

WAIT_S = 300
LOSS_BOUND = 0.05
"""nats per byte between the last evaluations: sums over other numbers of ranks round otherwise, and it adds up"""

Note = dict[str, Any]


def start(run_dir: Path, num_ranks: int, flags: list[str]) -> subprocess.Popen[bytes]:
    """Start train_gpt.py under `elastates run`."""
    shutil.rmtree(run_dir, ignore_errors=True)
    launcher = [sys.executable, "-m", "elaswave.launcher", f"--nproc-per-node={num_ranks}", "--replace"]
    command = [*launcher, str(HERE / "train_gpt.py"), "--backend", "elastic", "--run-dir", str(run_dir), *flags]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "ELASWAVE_TIMELINE": str(run_dir / "timeline")}
    return subprocess.Popen(command, env=environment)


def notes_of(run_dir: Path, pid: int) -> list[Note]:
    return read_milestones(run_dir / "timeline" / f"{pid}.timeline.jsonl")


def committed(run_dir: Path, pid: int) -> list[int]:
    """The steps that a process has committed, in their order."""
    return [note["step"] for note in notes_of(run_dir, pid) if note["what"] == "committed"]


def kill_inside_step(agent: subprocess.Popen[bytes], run_dir: Path, rank: int, earliest: int) -> tuple[Target, float]:
    """SIGKILL to a rank once its job has committed step ``earliest``; returns who it was, and when."""
    end_s = time.monotonic() + WAIT_S
    while time.monotonic() < end_s and agent.poll() is None:
        pids = [int(path.name.split(".")[0]) for path in (run_dir / "timeline").glob("*.timeline.jsonl")]
        if any(earliest in committed(run_dir, pid) for pid in pids):
            victim = next(target for target in find_ranks(pid=pids[0]) if target.rank == rank)
            os.kill(victim.pid, signal.SIGKILL)
            return victim, time.monotonic()
        time.sleep(0.002)
    raise SystemExit(f"the job in {run_dir} did not come to step {earliest}, see above")


def recovery_s(run_dir: Path, pid: int, killed_s: float) -> float:
    """From a kill to the next step that a survivor committed after it."""
    notes = [note for note in notes_of(run_dir, pid) if note["at_s"] > killed_s]
    edited_s = next(note["at_s"] for note in notes if note["what"] == "edited")
    return next(note["at_s"] for note in notes if note["what"] == "committed" and note["at_s"] > edited_s) - killed_s


def last_evaluation(run_dir: Path) -> float:
    return float([line["eval_loss"] for line in read_metrics(run_dir) if "eval_loss" in line][-1])


def tell(directory: Path, num_ranks: int, steps: int, flags: list[str]) -> bool:
    """Run both jobs and return whether everything that must hold does."""
    flags = ["--cache-dir", str(directory / "data"), "--steps", str(steps), *flags]
    reference, struck = directory / "elastic-reference", directory / "elastic"

    say(f"4. A job on an elastic group of {num_ranks} processes, never interrupted")
    if start(reference, num_ranks, flags).wait(WAIT_S) != 0:
        raise SystemExit("it failed, see above")

    say("5. The same job; SIGKILL for rank 0 inside a step, and for another rank later on")
    agent = start(struck, num_ranks, flags)
    try:
        first, first_s = kill_inside_step(agent, struck, rank=0, earliest=steps // 4)
        second, second_s = kill_inside_step(agent, struck, rank=2, earliest=steps // 2)
        status = agent.wait(WAIT_S)
    finally:
        kill_tree(agent)

    pids = [int(path.name.split(".")[0]) for path in (struck / "timeline").glob("*.timeline.jsonl")]
    whole = [pid for pid in pids if committed(struck, pid) == list(range(steps))]
    gap = abs(last_evaluation(struck) - last_evaluation(reference))
    checks = [
        (
            f"rank 0 (pid {first.pid}) and rank 2 (pid {second.pid}) were killed; the job ended with {status}",
            status == 0,
        ),
        (f"{len(whole)} processes lived through it, and committed all {steps} steps, each once", len(whole) >= 2),
        (f"last evaluations differ by {gap:.4f} nats per byte, at most {LOSS_BOUND}", gap <= LOSS_BOUND),
    ]
    if whole:
        times_s = [max(recovery_s(struck, pid, killed_s) for pid in whole) for killed_s in (first_s, second_s)]
        steps_s = [line["step_s"] for line in read_metrics(reference) if "step_s" in line]
        say("What a death costs")
        print(f"  from SIGKILL to the next committed step  {times_s[0]:.2f} s and {times_s[1]:.2f} s")
        print(f"  a step takes                             {statistics.median(steps_s):.2f} s (median)")
    say("What must hold")
    for text, holds in checks:
        print(f"  {'ok   ' if holds else 'FALSE'} {text}")
    return all(holds for _, holds in checks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--directory", type=Path, default=Path("runs/story"), help="where everything is written (%(default)s)")
    add("--ranks", type=int, default=4, help="processes per job (%(default)s)")
    add("--steps", type=int, default=40, help="optimizer steps of each job (%(default)s)")
    add("--config", default=str(HERE / "gpt.yaml"), help="settings of the jobs (%(default)s)")
    own, passed_on = parser.parse_known_args()
    succeeded = tell(own.directory, own.ranks, own.steps, ["--config", own.config, *passed_on])
    say("The job outlived its rank 0." if succeeded else "FAILED.")
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
