"""Replaying power cuts: many states of a recorded run, each written out, restored from and judged."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from benchmarks.crash.disk import SYNCS, Disk
from benchmarks.crash.power_loss import State, decisions, state
from benchmarks.crash.runs import Run
from benchmarks.crash.verdict import Problem, judge, promise_at

MEMORY = Path("/dev/shm")
TRIES_PER_NEW_STATE = 8
"""Random decisions often repeat a state; after so many in a row a moment is taken for exhausted."""


@dataclass
class Replayed:
    """What came of replaying a run."""

    num_states: int = 0
    """Different states judged; the same files at two moments count twice, for more may be asked of them later."""
    num_moments: int = 0
    problems: list[tuple[str, Problem]] = field(default_factory=list)
    """(moment, what was wrong)."""

    def count(self, kind: str) -> int:
        """States with a problem of that kind."""
        return sum(problem.kind == kind for _, problem in self.problems)


def moments(run: Run) -> list[tuple[int | None, str]]:
    """When the power goes: before each operation or mark, and after all; with what comes next there."""
    before = [(done.began_ns, f"before {done.op} {_relative(run, done.path)}") for done in run.log]
    return [*before, (None, "after everything")]


def states_at(run: Run, moment_ns: int | None, seed: int, without: Collection[str] = ()) -> Iterator[State]:
    """Different states that a power cut at a moment could leave, telling ones first."""
    disk = Disk(run.root, dict(run.initial), run.log, moment_ns, without)
    seen: set[bytes] = set()
    repeated = 0
    for decision in decisions(disk, seed):
        found = state(disk, decision)
        digest = found.digest()
        repeated = repeated + 1 if digest in seen else 0
        if repeated > TRIES_PER_NEW_STATE:
            return
        if digest not in seen:
            seen.add(digest)
            yield found


def replay(
    run: Run,
    states_per_moment: int,
    seed: int = 0,
    *,
    without: Collection[str] = (),
    until_problem: bool = False,
    since_ns: int = 0,
) -> Replayed:
    """Judge up to ``states_per_moment`` states at every moment of a run.

    Args:
        run: the recorded run.
        states_per_moment: at most.
        seed: of the random ones.
        without: call sites of fsyncs that are taken for not made.
        until_problem: stop at the first one.
        since_ns: pass over moments before.
    """
    done = Replayed()
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None, prefix="power-loss-") as scratch:
        for number, (moment_ns, name) in enumerate(moments(run)):
            if moment_ns is not None and moment_ns < since_ns:
                continue
            promise = promise_at(run, moment_ns)
            done.num_moments += 1
            for found in islice(states_at(run, moment_ns, seed + number, without), states_per_moment):
                root = Path(scratch) / str(done.num_states)
                root.mkdir()
                found.write_to(root)
                problems = judge(root / run.judged, promise)
                shutil.rmtree(root)
                done.num_states += 1
                done.problems += [(f"{run.name}, {name}", problem) for problem in problems]
                if problems and until_problem:
                    return done
    return done


def sites(run: Run) -> list[str]:
    """The lines of the product that asked for an fsync inside the run's directories."""
    inside = f"{run.root.resolve()}"
    return sorted({done.site for done in run.log if done.op in SYNCS and f"{done.path}/".startswith(f"{inside}/")})


@dataclass(frozen=True)
class Mutation:
    """An fsync left out: what the replay says of it."""

    site: str
    caught_by: str
    """The first state that shows it: run, moment and problem; empty if none does."""
    num_states: int
    """Judged before."""


def mutate(runs: Sequence[Run], states_per_moment: int, seed: int = 0, only: str = "") -> list[Mutation]:
    """Leave out each fsync of the product in turn, wherever it is made, and look for a state that shows it.

    Args:
        runs: recorded ones; those with the fsync are tried in this order.
        states_per_moment: at most.
        seed: of the random ones.
        only: a pattern; what the call site must begin with.
    """
    every = sorted({site for run in runs for site in sites(run) if re.match(only, site)})
    return [_mutation(site, [run for run in runs if site in sites(run)], states_per_moment, seed) for site in every]


def _mutation(site: str, runs: Sequence[Run], states_per_moment: int, seed: int) -> Mutation:
    judged = 0
    for run in runs:
        since_ns = min(done.began_ns for done in run.log if done.site == site)  # nothing differs before
        done = replay(run, states_per_moment, seed, without=(site,), until_problem=True, since_ns=since_ns)
        judged += done.num_states
        if done.problems:
            moment, problem = done.problems[0]
            return Mutation(site, f"{moment}: {problem.kind}: {problem.what}", judged)
    return Mutation(site, "", judged)


def _relative(run: Run, path: str) -> str:
    return path.removeprefix(f"{run.root.resolve()}/")
