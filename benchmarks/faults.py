"""Break checkpoints in every way we know, thousands of times, and count what is lost, unnoticed or wrong: nothing.

Power cuts: the file operations of recorded jobs are replayed up to every moment, and many of the states that a power
cut could have left there (``benchmarks/crash/disk.py`` says which are legal) are restored from and judged. Then each
fsync of the product is left out in turn, and the same replay must notice. Kills: real processes die by SIGKILL before
each operation on files. Damage: bits flipped and files cut, in every kind of file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # after installed packages: ours may be one of them

from benchmarks.crash.flips import KINDS, Damaged, damage
from benchmarks.crash.kills import Killed, kill_everywhere
from benchmarks.crash.matrix import write_matrix
from benchmarks.crash.replay import MEMORY, Mutation, Replayed, mutate, replay
from benchmarks.crash.runs import RUN, all_runs
from benchmarks.files import write_json
from benchmarks.progress import say


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much to do."""

    states_per_moment: int = 8
    """Power-cut states at every moment of every run."""
    mutated_states_per_moment: int = 40
    """The same with an fsync left out, until one shows it."""
    flips_per_kind: int = 600
    kill_stride: int = 1
    """Kill before every so manieth operation."""
    seed: int = 0


def measure(effort: Effort, scratch: Path) -> dict[str, Any]:
    """Do it all; the figures of the report."""
    begun_s = time.monotonic()
    runs = all_runs(scratch / "runs")
    say(f"recorded {len(runs)} runs, {sum(len(run.log) for run in runs)} operations and marks")
    replayed = {}
    for run in runs:
        replayed[run.name] = replay(run, effort.states_per_moment, effort.seed)
        say(f"{run.name}: {replayed[run.name].num_states} states, {len(replayed[run.name].problems)} problems")
    mutations = mutate(runs, effort.mutated_states_per_moment, effort.seed)
    say(f"fsyncs left out: {len(mutations)}, noticed: {sum(bool(m.caught_by) for m in mutations)}")
    killed = kill_everywhere(scratch / "kills", effort.kill_stride)
    say(f"killed {killed.crash_points} processes, {len(killed.problems)} problems")
    two_ranks = scratch / "runs" / "two" / RUN / "step-00000002"
    damaged = damage(two_ranks, scratch / "damage", effort.flips_per_kind, effort.seed)
    say(f"flipped {sum(damaged.bit_flips.values())} bits, {len(damaged.problems)} problems")
    figures = report(replayed, mutations, killed, damaged)
    return {**figures, "effort": asdict(effort), "seconds": round(time.monotonic() - begun_s, 1)}


def report(
    replayed: dict[str, Replayed], mutations: Sequence[Mutation], killed: Killed, damaged: Damaged
) -> dict[str, Any]:
    """All results as one JSON object; the first members are those that must be large, or zero."""

    def count(kind: str) -> int:
        return sum(done.count(kind) for done in replayed.values())

    problems = [
        f"{moment}: {problem.kind}: {problem.what}" for done in replayed.values() for moment, problem in done.problems
    ]
    return {
        "crash_points": killed.crash_points,
        "replayed_states": sum(done.num_states for done in replayed.values()),
        "bit_flips": sum(damaged.bit_flips.values()),
        "truncations": damaged.truncations,
        "lost": count("lost") + killed.lost,
        "undetected": damaged.undetected,
        "wrong_bytes": count("wrong_bytes") + killed.wrong_bytes + damaged.wrong_bytes,
        "ruins": count("ruins") + killed.ruins,
        "misnamed": damaged.misnamed,
        "fsyncs_removed": len(mutations),
        "fsyncs_caught": sum(bool(mutation.caught_by) for mutation in mutations),
        "runs": {name: {"states": done.num_states, "moments": done.num_moments} for name, done in replayed.items()},
        "bit_flips_by_kind": {kind: damaged.bit_flips[kind] for kind in KINDS},
        "fsyncs": [asdict(mutation) for mutation in mutations],
        "problems": [*problems, *killed.problems, *damaged.problems],
    }


def passed(figures: dict[str, Any]) -> bool:
    """Nothing lost, nothing unnoticed, nothing wrong; and every fsync is needed."""
    return not figures["problems"] and figures["fsyncs_removed"] == figures["fsyncs_caught"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the report to this file")
    parser.add_argument("--matrix", type=Path, help="put the matrix of the report into this page (docs/reliability.md)")
    parser.add_argument("--states-per-moment", type=int, default=Effort.states_per_moment, help="default %(default)s")
    parser.add_argument("--flips-per-kind", type=int, default=Effort.flips_per_kind, help="default %(default)s")
    parser.add_argument("--kill-stride", type=int, default=Effort.kill_stride, help="default %(default)s: every one")
    parser.add_argument("--seed", type=int, default=Effort.seed, help="of everything random; default %(default)s")
    options = parser.parse_args(arguments)
    effort = Effort(
        states_per_moment=options.states_per_moment,
        flips_per_kind=options.flips_per_kind,
        kill_stride=options.kill_stride,
        seed=options.seed,
    )
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None, prefix="faults-") as scratch:
        figures = measure(effort, Path(scratch))
    if options.json:
        write_json(options.json, figures)
    if options.matrix:
        write_matrix(options.matrix, figures)
    for line in figures["problems"]:
        print(line)
    shown = {key: value for key, value in figures.items() if isinstance(value, int | float)}
    print("  ".join(f"{key}={value}" for key, value in shown.items()))
    return 0 if passed(figures) else 1


if __name__ == "__main__":
    sys.exit(main())
