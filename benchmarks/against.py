"""Our checkpoints at two commits, run by run in turns: what the changes between them cost or gained.

    python benchmarks/against.py d8491ef HEAD --rounds 7 --json runs/bench/against.json

Each commit gets a worktree below runs/against/ and a build of its own, and runs its own benchmarks/checkpoint.py with
nobody but ours. A round measures both, one right after the other, in random order; a ratio is the median over the
rounds of the second commit's figure divided by the first one's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # after installed packages: ours may be one of them

from benchmarks import machine
from benchmarks.contenders import OURS
from benchmarks.files import write_json
from benchmarks.progress import say

ROOT = Path(__file__).resolve().parents[1]
FIGURES = {
    "call_ms": "less is better",
    "stall_ms": "less is better",
    "durable_mb_s": "more is better",
    "restore_mb_s": "more is better",
    "tiny_save_s": "less is better",
    "tiny_load_s": "less is better",
}

Figures = dict[str, float]


def prepare(commit: str) -> Path:
    """A worktree of a commit with the extension built in it; one that is there already is taken as it is."""
    sha = _git("rev-parse", "--short", f"{commit}^{{commit}}")
    tree = ROOT / "runs" / "against" / sha
    if not tree.exists():
        _git("worktree", "add", "--detach", str(tree), sha)
    if not list(tree.glob("_elastates*.so")):
        say(f"building {sha}")
        subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=tree, check=True, stdout=sys.stderr)
    return tree


def measure(tree: Path, options: argparse.Namespace, seed: int) -> Figures:
    """One run of a tree's own benchmark.

    Raises:
        RuntimeError: it failed, or did not give back every bit.
    """
    with tempfile.TemporaryDirectory(dir=options.dir) as directory:
        report = Path(directory) / "report.json"
        words = ["--contenders", OURS, "--repeats", 1, "--size-mb", options.size_mb, "--seed", seed]
        words += ["--tiny-count", options.tiny_count, "--tiny-repeats", 2, "--dir", options.dir, "--json", report]
        if "--reading-repeats" in (tree / "benchmarks" / "checkpoint.py").read_text():
            words += ["--reading-repeats", 0]
        command = [sys.executable, tree / "benchmarks" / "checkpoint.py", *words]
        ended = subprocess.run(
            [str(word) for word in command],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree)},  # before installed packages: ours may be one of them
            stdout=subprocess.DEVNULL,
            check=False,
        )
        if ended.returncode:
            raise RuntimeError(f"{tree.name}: the benchmark ended with {ended.returncode}")
        return figures_of(json.loads(report.read_text()))


def figures_of(report: dict[str, Any]) -> Figures:
    """What is compared, from a report of benchmarks/checkpoint.py."""
    ours = report["contenders"][OURS]
    last = report["tiny_tensors"]["samples"][OURS][-1]
    return {
        **{name: float(ours[name]) for name in FIGURES if name in ours},
        "tiny_save_s": last["save_s"],
        "tiny_load_s": last["load_s"],
    }


def summary(rounds: Sequence[tuple[Figures, Figures]]) -> dict[str, dict[str, float]]:
    """Medians of both sides, and of the ratios second / first."""
    return {
        name: {
            "first": statistics.median(first[name] for first, _ in rounds),
            "second": statistics.median(second[name] for _, second in rounds),
            "ratio": statistics.median(second[name] / first[name] for first, second in rounds),
        }
        for name in FIGURES
    }


def main() -> int:
    """Build, measure in turns, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", help="a commit")
    parser.add_argument("second", nargs="?", default="HEAD", help="the other one (HEAD)")
    parser.add_argument("--rounds", type=int, default=7, help="of both (%(default)s)")
    parser.add_argument("--size-mb", type=int, default=1024, help="bytes of the tensors / 10^6 (%(default)s)")
    parser.add_argument("--tiny-count", type=int, default=50_000, help="4 KB tensors of the second part (%(default)s)")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to be measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    options = parser.parse_args()
    trees = [prepare(options.first), prepare(options.second)]
    order = random.Random(options.seed)
    rounds: list[tuple[Figures, Figures]] = []
    for number in range(options.rounds):
        figures: dict[int, Figures] = {}
        for side in order.sample((0, 1), 2):
            figures[side] = measure(trees[side], options, options.seed + number)
            say(f"{number} {trees[side].name}: " + "  ".join(f"{n} {v:.2f}" for n, v in figures[side].items()))
        rounds.append((figures[0], figures[1]))
    found = summary(rounds)
    for name, row in found.items():
        print(
            f"{name:14s} {row['first']:10.2f} -> {row['second']:10.2f}   second / first {row['ratio']:.3f}, "
            f"{FIGURES[name]}"
        )
    if options.json:
        document = {"commits": [tree.name for tree in trees], "figures": found, "rounds": rounds}
        write_json(options.json, {**document, "seed": options.seed, "machine": machine.describe(options.dir)})
    return 0


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
