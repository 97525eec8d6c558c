"""How long it takes until a rank that hangs is found: a part of benchmarks/recovery.py.

Ranks of benchmarks/recovery_steps.py, which sum on backend "elastic", so all of them fall silent when one hangs. Its
training thread falls asleep, or never lets go of the GIL. Seconds are counted from the last mark of progress that it
made, on each of the others: until it was told that a rank hangs (`told_s`), and until it was told that the rank is dead
(`detected_s`): by then stacks were dumped, the others had answered, the one at fault was killed and reaped.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.jobs import ROOT, SELDOM_S, commits_of, launch, milestones_of, wait_for_ranks, wait_until
from benchmarks.spread import spread
from elaswave.chaos.acts import ACTS, Surroundings

KINDS = ("sleep", "hold_gil")
NUM_RANKS = 4
WARM_STEPS = 10
TOLERANCE = 1.1
"""Times the failure timeout, by when a hang must have been dealt with."""
COUNTED = "from the last mark of the rank that hangs, until each of the others heard: that one hangs; that it is dead"


def hang_one(kind: str, failure_timeout_s: float) -> list[dict[str, float]]:
    """One rank of a job hangs; what each of the others heard, and when."""
    with tempfile.TemporaryDirectory() as directory:
        timeline = Path(directory)
        options = ["--nproc-per-node", NUM_RANKS, "--failure-timeout-s", failure_timeout_s]
        with launch([ROOT / "benchmarks" / "recovery_steps.py"], options, timeline=timeline, is_quiet=True) as agent:
            targets = wait_for_ranks(agent, timeline, NUM_RANKS, WARM_STEPS)
            victim = targets[2]
            ACTS[kind](victim, Surroundings())
            others = [target.pid for target in targets if target != victim]
            look = functools.partial(_heard_by_all, timeline, others, victim.rank)
            heard = wait_until(look, agent, f"the death of a rank by {kind}", SELDOM_S)
            marked_s = commits_of(timeline, victim.pid)[-1]["at_s"]
    return [{what: at_s - marked_s for what, at_s in moments.items()} for moments in heard]


def _heard_by_all(timeline: Path, pids: list[int], dead: int) -> list[dict[str, float]] | None:
    """When each of these processes heard of a hang, and of that death; None until all have."""
    heard = []
    for pid in pids:
        notes = milestones_of(timeline, pid)
        hangs = [note["at_s"] for note in notes if note["what"] == "heard hang"]
        deaths = [note["at_s"] for note in notes if note["what"] == "heard death" and note["of"] == dead]
        if not (hangs and deaths):
            return None
        heard.append({"told_s": hangs[0], "detected_s": deaths[0]})
    return heard


def summarize(rows: list[dict[str, float]], failure_timeout_s: float) -> dict[str, Any]:
    """The spread over all who heard; what counts is the slowest of them."""
    slowest_s = max(row["detected_s"] for row in rows)
    return {
        "failure_timeout_s": failure_timeout_s,
        "counted": COUNTED,
        "told_s": spread([row["told_s"] for row in rows]),
        "detected_s": {**spread([row["detected_s"] for row in rows]), "max": round(slowest_s, 3)},
        "limit_s": failure_timeout_s * TOLERANCE,
        "is_within": slowest_s <= failure_timeout_s * TOLERANCE,
    }
