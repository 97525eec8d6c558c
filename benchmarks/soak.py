"""Failures without end: a group that loses and gains members all the time, and sums that must stay right.

    python benchmarks/soak.py --events 1000 --seed 1 --json runs/bench/soak.json

Jobs of benchmarks/soak_job.py run under `elastates run` with spares and replacements; the chaos script's acts strike
them by seed, rank 0 and agents among the victims. A job whose agent died is struck a few times more, then ended, and
the next one begins. What every process claims about every step is compared here, from outside: the sums with what the
members named must add up to; claims of one step with each other; members of one epoch with each other.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # after installed packages: ours may be one of them

from benchmarks.files import write_json
from benchmarks.jobs import ROOT, Agent, end, launch, wait_for_ranks
from benchmarks.soak_job import contribution
from elaswave.chaos.acts import Surroundings
from elaswave.chaos.plan import Planned, Schedule, make_plan
from elaswave.chaos.strike import Done, carry_out
from elaswave.chaos.targets import Target, find_ranks, processes_of

TIMELINE = "timeline"
"""Directory of the ranks' milestones below the one of their claims."""
HANG_S = 60.0
"""No new step for so long is a hang of the whole job."""
AFTER_AGENT = 3
"""Acts that a job has to bear after its agent's death."""

Claim = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=60, help="how many acts (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=4, help="of each job (default: 4)")
    parser.add_argument("--events-per-job", type=int, default=100, help="then the next one begins (default: 100)")
    parser.add_argument("--mean-s", type=float, default=0.5, help="mean time between two acts (default: 0.5)")
    parser.add_argument("--kinds", default="kill,kill,kill,kill,stop,reset,slow,agent", help="drawn from")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    options = parser.parse_args()
    schedule = Schedule(mean_s=options.mean_s)
    plan = make_plan(options.events, seed=options.seed, kinds=options.kinds.split(","), schedule=schedule, lasts_s=0.3)
    soak = Soak(options.ranks)
    while plan:
        plan = plan[soak.run_job(plan[: options.events_per_job]) :]
        print(json.dumps({key: value for key, value in soak.result().items() if key != "claims"}), flush=True)
    result = soak.result()
    if options.json:
        write_json(options.json, {"seed": options.seed, **result})
    return int(any(result[name] for name in ("wrong_sums", "hangs", "split_brains", "leaked")))


class Soak:
    """Jobs one after the other, and what was found out about them."""

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._done: list[Done] = []
        self._hangs: list[str] = []
        self._leaks: list[str] = []
        self._claims: list[list[Claim]] = []  # of each job

    def run_job(self, plan: list[Planned]) -> int:
        """Strike one job until the plan, or the job, is at its end; returns how many acts were carried out."""
        with tempfile.TemporaryDirectory() as directory, job(self._num_ranks, Path(directory)) as agent:
            ranks = wait_for_ranks(agent, Path(directory) / TIMELINE, self._num_ranks)
            find = functools.partial(find_ranks, ranks[0].job)
            over = threading.Event()
            num_done, acts_left, agent_was_killed = 0, len(plan), False
            for done in carry_out(plan, find, Surroundings(), over):
                num_done += 1
                agent_was_killed |= done.kind == "agent" and not done.problem
                acts_left = min(acts_left - 1, AFTER_AGENT) if agent_was_killed else acts_left - 1
                self._done.append(done)
                if not self._goes_on(Path(directory), find) or acts_left <= 0:
                    break
            self._claims.append(read_claims(Path(directory)))
            self._end(agent, ranks[0].job, agent_was_killed)
        return max(num_done, 1)

    def _goes_on(self, directory: Path, find: Callable[[], list[Target]]) -> bool:
        """Whether anybody lives, and makes a step; a job that only lives hangs."""
        before = num_steps(directory)
        end_s = time.monotonic() + HANG_S
        while num_steps(directory) <= before:
            try:
                living = find()
            except ValueError:
                return False
            if time.monotonic() > end_s:
                self._hangs.append(f"no step within {HANG_S:g} s of {self._done[-1]}; {len(living)} processes live")
                return False
            time.sleep(0.01)
        return True

    def _end(self, agent: Agent, name: str, agent_was_killed: bool) -> None:
        """End the job, and look for what it left behind."""
        end(agent)
        if agent_was_killed:
            for pid in processes_of(name):  # nobody is left to end them: they would go on, as they should
                os.kill(pid, signal.SIGKILL)
        end_s = time.monotonic() + 10
        while (left := processes_of(name)) and time.monotonic() < end_s:
            time.sleep(0.01)
        self._leaks += [f"process {pid} outlived its job" for pid in left]

    def result(self) -> dict[str, Any]:
        """JSON-ready."""
        claims = [claim for of_job in self._claims for claim in of_job]
        leaks = [*self._leaks, *(text for of_job in self._claims for text in find_leaks(of_job))]
        split = [text for of_job in self._claims for text in find_split_brains(of_job)]
        return {
            "events": len(self._done),
            "by_kind": dict(Counter(done.kind for done in self._done)),
            "not_carried_out": sum(bool(done.problem) for done in self._done),
            "jobs": len(self._claims),
            "steps": sum(len({claim["step"] for claim in of_job}) for of_job in self._claims),
            "epochs": sum(len({claim["epoch"] for claim in of_job}) for of_job in self._claims),
            "wrong_sums": sum(map(is_wrong, claims)),
            "hangs": len(self._hangs),
            "split_brains": len(split),
            "leaked": len(leaks),
            "details": [*self._hangs, *leaks, *split],
            "claims": self._claims,
        }


def job(num_ranks: int, directory: Path) -> AbstractContextManager[Agent]:
    """A job of benchmarks/soak_job.py that writes below ``directory``."""
    options = ["--nproc-per-node", num_ranks, "--min-ranks", 1, "--spares", 1, "--replace"]
    options += ["--max-replacements", 10_000, "--failure-timeout-s", 4]
    script = [ROOT / "benchmarks" / "soak_job.py"]
    return launch(script, options, timeline=directory / TIMELINE, is_quiet=True, SOAK_DIR=str(directory))


def read_claims(directory: Path) -> list[Claim]:
    """What all processes of a job have written down; the last line of one that was killed may be half."""
    claims = []
    for file in directory.glob("*.steps.jsonl"):
        whole, _, _ = file.read_text().rpartition("\n")
        pid = int(file.name.split(".")[0])
        claims += [{"pid": pid, **json.loads(line)} for line in whole.splitlines()]
    return claims


def num_steps(directory: Path) -> int:
    """Lines in all processes' files: grows with every step that anybody commits."""
    return sum(file.read_bytes().count(b"\n") for file in directory.glob("*.steps.jsonl"))


# ---- verdicts: pure functions of claims -----------------------------------------------------------------------------


def is_wrong(claim: Claim) -> bool:
    """Whether a sum is not what the members that it names add up to."""
    expected = sum(contribution(pid, claim["step"]) for pid in claim["members"])
    return claim["low"] != expected or claim["high"] != expected


def find_split_brains(claims: list[Claim]) -> list[str]:
    """Steps and epochs that two groups claim, and claims of processes that were not members."""
    found = []
    by_step: dict[int, set[tuple[int, ...]]] = defaultdict(set)
    by_epoch: dict[int, set[tuple[int, ...]]] = defaultdict(set)
    for claim in claims:
        members = tuple(claim["members"])
        by_step[claim["step"]].add((claim["epoch"], *members))
        by_epoch[claim["epoch"]].add(members)
        if claim["pid"] not in members:
            found.append(f"process {claim['pid']} claims step {claim['step']} of members {members}")
    for name, table in (("step", by_step), ("epoch", by_epoch)):
        found += [f"{name} {number} is claimed by {groups}" for number, groups in table.items() if len(groups) > 1]
    return found


def find_leaks(claims: list[Claim]) -> list[str]:
    """Processes that hold more descriptors (shared memory has one each) or threads than when their group first was as
    large."""
    found = []
    for pid in {claim["pid"] for claim in claims}:
        mine = sorted((claim for claim in claims if claim["pid"] == pid), key=lambda claim: claim["step"])
        by_size: dict[int, list[Claim]] = defaultdict(list)
        for claim in mine:
            by_size[len(claim["members"])].append(claim)
        for size, of_size in by_size.items():
            for what, leeway in (("fds", 4), ("threads", 1)):
                counts = [claim[what] for claim in of_size]
                if len(counts) > 10 and min(counts[-3:]) > max(counts[:3]) + leeway:
                    found.append(f"process {pid} among {size} had {max(counts[:3])} {what}, then {min(counts[-3:])}")
    return found


if __name__ == "__main__":
    sys.exit(main())
