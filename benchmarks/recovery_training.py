"""How long a training job needs after a SIGKILL until its next step is committed: a part of benchmarks/recovery.py.

examples/train_gpt.py on backend "elastic", slots of 1 x 64 tokens, four ranks under a quota of half a core each. One of
them, any, is killed at a random moment; a warm spare takes its place, so the job has its size again before the next
kill. Counted from the signal, on the slowest survivor: until its pending operation raised (`unblocked_ms`), until the
survivors had agreed and taken the view up, until they had committed the step that was interrupted. `recovery_ms` is the
last of these less a normal step of all four. What had been done of that step before the kill is lost and done again;
it is no part of recovery_ms and stands beside it (`redone_ms`). Nor is the newcomer waited for: it is among those who
commit after `rejoined_ms`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.jobs import ROOT, SELDOM_S, Agent, commits_of, launch, milestones_of, wait_for_ranks, wait_until
from benchmarks.quota import Quotas, are_idle
from benchmarks.spread import spread
from elaswave.chaos.targets import Target, find_ranks, processes_of

NUM_RANKS = 4
CPU_QUOTA = 0.5
MAX_SPARES = 16
"""Warm ones; what dies after that many kills is replaced by a process that has yet to import everything."""
WARM_STEPS = 10
SHAPE = {"micro-batch": 1, "context": 64, "global-batch": 8, "steps": 10**9}
QUIET = {"eval-every": 0, "checkpoint-every": 0}

Row = dict[str, float]


def measure(kills: int, draw: random.Random) -> dict[str, Any]:
    """So many kills, one after the other, in one job."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        quotas = stack.enter_context(contextlib.closing(Quotas(CPU_QUOTA)))
        settings = {"run-dir": directory / "run", "cache-dir": ROOT / "runs" / "data", **SHAPE, **QUIET}
        flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
        script = [ROOT / "examples" / "train_gpt.py", "--backend", "elastic", *flags]
        spares = ["--spares", min(kills, MAX_SPARES), "--replace", "--max-replacements", kills]
        options = ["--nproc-per-node", NUM_RANKS, "--min-ranks", 1, *spares]
        timeline = directory / "timeline"
        agent = stack.enter_context(launch(script, options, timeline=timeline, is_quiet=True))
        job = wait_for_ranks(agent, timeline, NUM_RANKS)[0].job
        rows = [kill_one(agent, job, timeline, quotas, draw) for _ in range(kills)]
        return summarize(rows, quotas)


def kill_one(agent: Agent, job: str, timeline: Path, quotas: Quotas, draw: random.Random) -> Row:
    """Kill one rank of the settled job, and wait until it has its size again."""
    targets = wait_until(lambda: _settled(job, timeline, quotas), agent, "ranks in a steady pace", SELDOM_S)
    normal_ms = _normal_step_ms(timeline, targets[0].pid)
    time.sleep(draw.uniform(0.0, 2 * normal_ms / 1e3))  # a random moment of a step
    victim = draw.choice(targets)
    killed_s = time.monotonic()
    os.kill(victim.pid, signal.SIGKILL)
    survivors = [target.pid for target in targets if target != victim]
    found = wait_until(lambda: _recovered(timeline, survivors, killed_s), agent, "a step of the survivors", SELDOM_S)
    rejoined_s = wait_until(lambda: _rejoined(job, timeline, targets), agent, "a step of the newcomer", SELDOM_S)
    return {
        **found,
        "recovery_ms": found["committed_ms"] - normal_ms,
        "normal_step_ms": normal_ms,
        "rejoined_ms": (rejoined_s - killed_s) * 1e3,
    }


def summarize(rows: list[Row], quotas: Quotas) -> dict[str, Any]:
    """Medians and 95th percentiles over the kills."""
    found: dict[str, Any] = {"kills": len(rows), "ranks": NUM_RANKS, "slot_tokens": [1, SHAPE["context"]]}
    for name in rows[0]:
        figures = spread([row[name] for row in rows], digits=1)
        found |= {f"{name}_median": figures["median"], f"{name}_p95": figures["p95"]}
    return {**found, "cpu_quota_cores": quotas.cores, "cpu_quota_by": quotas.how, "by_kill": rows}


def _settled(job: str, timeline: Path, quotas: Quotas) -> list[Target] | None:
    """All ranks, once they are complete, have their quotas, keep pace since, and no spare is busy getting warm."""
    targets = find_ranks(job)
    quotas.limit(targets)
    pids = [target.pid for target in targets]
    began_s = max((notes[0]["at_s"] for pid in pids if (notes := commits_of(timeline, pid))), default=0.0)
    edits_s = [note["at_s"] for pid in pids for note in milestones_of(timeline, pid) if note["what"] == "edited"]
    since_s = max([began_s, *edits_s])
    steps = [sum(note["at_s"] > since_s for note in commits_of(timeline, pid)) for pid in pids]
    if len(targets) < NUM_RANKS or min(steps) < WARM_STEPS:
        return None
    return targets if are_idle(list(set(processes_of(job)) - set(pids))) else None


def _recovered(timeline: Path, survivors: list[int], killed_s: float) -> Row | None:
    """What the slowest survivor needed, in milliseconds; None until all have committed a step in the new view."""
    moments: dict[str, list[float]] = {"unblocked_ms": [], "agreed_ms": [], "edited_ms": [], "committed_ms": []}
    redone_ms = []
    for pid in survivors:
        notes = milestones_of(timeline, pid)
        behind = iter([note for note in notes if note["at_s"] >= killed_s])
        for what, times_ms in zip(("loss", "agreed", "edited", "committed"), moments.values(), strict=True):
            note = next((note for note in behind if note["what"] == what), None)
            if note is None:
                return None
            times_ms.append((note["at_s"] - killed_s) * 1e3)
        last_s = max(note["at_s"] for note in notes if note["what"] == "committed" and note["at_s"] < killed_s)
        redone_ms.append((killed_s - last_s) * 1e3)
    return {"redone_ms": max(redone_ms), **{name: max(times_ms) for name, times_ms in moments.items()}}


def _rejoined(job: str, timeline: Path, before: list[Target]) -> float | None:
    """When the one who took the victim's place had committed its first step."""
    newcomers = [target.pid for target in find_ranks(job) if target not in before]
    firsts = [commits[0]["at_s"] for pid in newcomers if (commits := commits_of(timeline, pid))]
    return float(firsts[0]) if firsts else None


def _normal_step_ms(timeline: Path, pid: int) -> float:
    """Median of a rank's last steps."""
    times_s = [note["at_s"] for note in commits_of(timeline, pid)][-WARM_STEPS:]
    return statistics.median(later_s - sooner_s for sooner_s, later_s in itertools.pairwise(times_s)) * 1e3
