"""``elastates chaos``: the command line."""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from elaswave.chaos.acts import ACTS, Surroundings
from elaswave.chaos.plan import Schedule, make_plan
from elaswave.chaos.report import draw, make_report, milestones_of
from elaswave.chaos.strike import carry_out
from elaswave.chaos.targets import find_ranks

EPILOG = """\
The job is found by its environment (elastates run, torchrun, srun, mpirun). Start it with ELASWAVE_TIMELINE=DIRECTORY
to have milestones and phases, and with ELASWAVE_CHAOS=1 for the kinds sleep and hold_gil.
Exit status: 0 all acts were carried out, 1 some were not (see "problem" in the report), 2 the command line is wrong
or there is no such job, 3 the job ended before the plan did."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Strike a running job; returns the exit status."""
    options = _parser().parse_args(arguments)
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # or a rank would stay stopped
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda *_: over.set())
    try:
        if options.events < 1:
            raise ValueError(f"--events must be at least 1, got {options.events}")
        schedule = Schedule(mean_s=options.mean_s, every_steps=options.every_steps, phase=options.phase)
        plan = make_plan(
            options.events,
            seed=options.seed,
            kinds=options.kinds.split(","),
            schedule=schedule,
            lasts_s=options.lasts_s,
            rank=options.rank,
        )
        around = Surroundings(link=options.link, disk=options.disk, cpu_share=options.cpu_share)
        for name, path in (("--report", options.report), ("--picture", options.picture)):
            _check_writable(name, path)
        targets = find_ranks(options.job, options.pid)
        ranks = [target.rank for target in targets]
        if options.rank not in (None, *ranks):
            raise ValueError(f"--rank must be one of {', '.join(map(str, ranks))}, got {options.rank}")
    except ValueError as error:
        print(f"elastates chaos: {error}", file=sys.stderr)
        return 2
    timeline = options.timeline or targets[0].timeline
    if (options.every_steps or options.phase) and timeline is None:
        print("elastates chaos: steps and phases need a job with ELASWAVE_TIMELINE=DIRECTORY", file=sys.stderr)
        return 2
    done = []
    for one in carry_out(plan, functools.partial(find_ranks, targets[0].job), around, over):
        _say(f"{one.kind} rank {one.rank} (pid {one.pid}) {one.phase} {one.problem}".rstrip())
        done.append(one)
    over.wait(options.settle_s if done else 0)
    milestones = milestones_of(timeline) if timeline else {}
    if options.report:
        about = {"job": targets[0].job, "seed": options.seed}
        options.report.write_text(json.dumps(make_report(done, milestones, **about), indent=1) + "\n")
    if options.picture:
        options.picture.write_text(draw(done, milestones))
    if any(one.problem for one in done):
        return 1
    return 0 if len(done) == len(plan) else 3


def _check_writable(name: str, path: Path | None) -> None:
    """Before anybody is struck: the report of what was done could not be had again."""
    if path is not None and (path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK)):
        raise ValueError(f"{name} must be a file that can be written to, in a directory that is there, got {path}")


def _say(line: str) -> None:
    """Print; who stopped to read, such as ``head``, does not keep the report from being written."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="elastates chaos",
        description="Strike the ranks of a running job, by seed and schedule, and report what became of it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--job",
        default="",
        help="its name (ELASWAVE_JOB, torchrun's run id, Slurm's job id); needed if several run",
    )
    add("--pid", type=int, default=0, help="or a process of it")
    add("--events", type=int, default=1, metavar="N", help="how many acts (default: 1)")
    add("--seed", type=int, default=0, help="equal seeds strike alike (default: 0)")
    add("--kinds", default="kill", help=f"drawn from, with commas between: {', '.join(ACTS)} (default: kill)")
    add("--mean-s", type=float, default=0.0, metavar="S", help="mean time between acts, drawn exponentially")
    add("--every-steps", type=int, default=0, metavar="N", help="or strike every so many committed steps")
    add("--phase", default="", help="wait until the victim is in this phase: all-reduce, agree, edit, recovery, ...")
    add("--rank", type=int, default=None, help="the victim while it lives (default: drawn)")
    add("--lasts-s", type=float, default=2.0, metavar="S", help="mean duration of acts that have an end (default: 2)")
    add("--settle-s", type=float, default=2.0, metavar="S", help="wait so long after the last act (default: 2)")
    add("--link", default="", metavar="NETNS:INTERFACE", help="the cable that a partition cuts")
    add("--disk", type=Path, default=None, metavar="DIRECTORY", help="on the file system that full_disk fills")
    add(
        "--cpu-share",
        type=float,
        default=0.1,
        metavar="X",
        help="of a core, left to whom is slowed (default: 0.1)",
    )
    add("--timeline", type=Path, default=None, metavar="DIRECTORY", help="where the ranks' timelines are, if not here")
    add("--report", type=Path, default=None, metavar="FILE", help="write the JSON report here")
    add("--picture", type=Path, default=None, metavar="FILE", help="draw the timeline here (SVG)")
    return parser
