"""Train with a checkpoint after every step, and the same without: what does it cost when storage hardly keeps up?

The step is made short on purpose: writing the state at the disk's ceiling takes at least half of it. All steps with
checkpoints come in a row, between two halves of those without, so that a drift of the machine hits both; they end when
the last checkpoint is durable, and that wait counts. Measured with an arena of twice a checkpoint and of half of one.
Speed is reported, never asserted; a checkpoint that is not published is an error.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # after installed packages: ours may be one of them

import datastates
from benchmarks import ceilings, machine
from benchmarks.files import remove_tree, write_json
from benchmarks.machine import MB
from benchmarks.progress import say
from benchmarks.protocol import quiesce
from benchmarks.workload import Workload

ARENA_FACTORS = {"overhead": 2.0, "overhead_small_arena": 0.5}
PATTERN = ((False, 0.5), (True, 1.0), (False, 0.5))
"""(with checkpoints, share of the steps)."""
CEILING_WRITES = 3
WARM_UP_STEPS = 3
CALIBRATION_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class Block:
    """Steps in a row, all with a checkpoint or all without."""

    with_checkpoints: bool
    steps_s: list[float]
    drain_s: float
    """From the end of the last step until its checkpoint was durable."""

    @property
    def total_s(self) -> float:
        """What the block took, drain included."""
        return sum(self.steps_s) + self.drain_s


class Loop:
    """A training loop: forward, backward, optimizer step, and a checkpoint where one is asked for."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.next_step = 0

    def step(self, checkpoints: datastates.Checkpointer | None = None) -> float:
        """One step; returns its seconds. The optimizer waits at the gate by itself."""
        start_s = time.perf_counter()
        self.workload.forward_backward()
        self.workload.optimizer.step()
        if checkpoints is not None:
            checkpoints.checkpoint(self.next_step, self.workload.live())
        self.next_step += 1
        return time.perf_counter() - start_s

    def block(self, count: int, checkpoints: datastates.Checkpointer | None) -> Block:
        """``count`` steps and, with checkpoints, the wait for the last one."""
        quiesce()
        steps_s = [self.step(checkpoints) for _ in range(count)]
        start_s = time.perf_counter()
        if checkpoints is not None:
            checkpoints.wait()
        drain_s = time.perf_counter() - start_s
        say(
            f"{count:3d} steps {'with' if checkpoints else 'without':8s} checkpoints, median "
            f"{statistics.median(steps_s) * 1e3:5.0f} ms, drain {drain_s * 1e3:5.0f} ms"
        )
        return Block(with_checkpoints=checkpoints is not None, steps_s=steps_s, drain_s=drain_s)


def overhead(blocks: Sequence[Block]) -> float:
    """Time with checkpoints over time without, less one; equal numbers of steps on both sides."""
    sums_s = {kind: sum(block.total_s for block in blocks if block.with_checkpoints is kind) for kind in (True, False)}
    return sums_s[True] / sums_s[False] - 1


def measure(loop: Loop, root: Path, arena_mb: int, num_steps: int) -> tuple[list[Block], datastates.CheckpointStats]:
    """One arena size; ``num_steps`` with checkpoints and as many without. Deletes what it wrote."""
    try:
        with datastates.Checkpointer(root, arena_mb=arena_mb, keep_last=2) as checkpoints:
            loop.block(WARM_UP_STEPS, checkpoints)
            blocks = [loop.block(round(share * num_steps), checkpoints if kind else None) for kind, share in PATTERN]
            return blocks, checkpoints.stats()
    finally:
        remove_tree(root)


def write_ceilings(root: Path, size_bytes: int, count: int) -> list[float]:
    """Plain O_DIRECT write + fsync, MB/s."""
    path = root / "ceiling.bin"
    speeds = []
    for _ in range(count):
        quiesce()
        speeds.append(size_bytes / ceilings.write_seconds(path, size_bytes)[0] / MB)
        path.unlink()
    return speeds


def run(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Calibrate, measure both arenas, report."""
    workload = Workload(options.size_mb * MB, options.num_tiny, options.seed, fused=True)
    loop = Loop(workload)
    write_ceilings(root, workload.num_bytes, CEILING_WRITES)  # a disk that has rested is faster than under load
    speeds = write_ceilings(root, workload.num_bytes, CEILING_WRITES)
    write_s = workload.num_bytes / MB / statistics.median(speeds)
    step_s = workload.calibrate(write_s / options.write_fraction, loop.step, CALIBRATION_STEPS)
    say(f"at the ceiling writing takes {write_s * 1e3:.0f} ms")
    say(f"a step of {len(workload.tokens)} tokens takes {step_s * 1e3:.0f} ms")

    report: dict[str, Any] = {}
    arenas: dict[str, Any] = {}
    plain_steps_s: list[float] = []
    for name, factor in ARENA_FACTORS.items():
        arena_mb = max(1, round(factor * workload.num_bytes / MB))
        blocks, stats = measure(loop, root / name, arena_mb, options.steps)
        report[name] = overhead(blocks)
        arenas[name] = {"arena_mb": arena_mb, "stats": asdict(stats), "blocks": [asdict(block) for block in blocks]}
        plain_steps_s += [s for block in blocks if not block.with_checkpoints for s in block.steps_s]
        speeds += write_ceilings(root, workload.num_bytes, CEILING_WRITES)
    step_s, write_mb_s = statistics.median(plain_steps_s), statistics.median(speeds)
    return report | {
        "step_ms": step_s * 1e3,
        "state_mb": workload.num_bytes / MB,
        "write_fraction": workload.num_bytes / MB / write_mb_s / step_s,
        "steps": options.steps,
        "ceiling": {"write_mb_s": write_mb_s, "samples": speeds},
        "arenas": arenas,
        "tokens": len(workload.tokens),
        "optimizer": "AdamW(fused=True)",
        "machine": machine.describe(root),
    }


def print_summary(report: dict[str, Any]) -> None:
    """The lines a person reads."""
    print(
        f"state {report['state_mb']:.0f} MB, step {report['step_ms']:.0f} ms without checkpoints, "
        f"writing takes {report['write_fraction']:.2f} of it at {report['ceiling']['write_mb_s']:.0f} MB/s"
    )
    for name, factor in ARENA_FACTORS.items():
        stats = report["arenas"][name]["stats"]
        print(
            f"{name:22s} {report[name]:+.3f} of a step; arena {factor} x state; "
            f"waited {stats['gate_wait_s_total']:.2f} s at gates and {stats['call_s_total']:.2f} s in calls"
        )
    if report["write_fraction"] < 0.5:
        print("the step is longer than twice the write: this run does not show what it should; try another --size-mb")
    elif report["write_fraction"] > 1:
        print(
            "no engine can hide this: writing takes longer than a step; was the machine busy while it was calibrated?"
        )


def all_durable(report: dict[str, Any]) -> bool:
    """Whether every checkpoint that was begun was published."""
    stats = [arena["stats"] for arena in report["arenas"].values()]
    return all(each["num_durable"] == each["num_begun"] == report["steps"] + WARM_UP_STEPS for each in stats)


def parse_options() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the report goes")
    parser.add_argument("--size-mb", type=int, default=768, help="bytes of the state, in units of 10^6 (%(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="with checkpoints, and as many without (%(default)s)")
    parser.add_argument(
        "--write-fraction",
        type=float,
        default=0.58,
        help="aim: write at the ceiling / step, never below 0.5 (%(default)s)",
    )
    parser.add_argument("--num-tiny", type=int, default=500, help="1 KB parameters in the model (%(default)s)")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to be measured")
    parser.add_argument("--seed", type=int, default=0, help="of values (%(default)s)")
    return parser.parse_args()


def main() -> int:
    """Measure, report; non-zero if a checkpoint was lost."""
    options = parse_options()
    options.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="elastates-every-step-", dir=options.dir) as name:
        report = run(options, Path(name))
    write_json(options.json, report)
    print_summary(report)
    return 0 if all_durable(report) else 1


if __name__ == "__main__":
    sys.exit(main())
