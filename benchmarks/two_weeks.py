"""Two weeks of hourly checkpoints, in minutes: does anything grow, and is there always a whole checkpoint?

One process takes 400 checkpoints of a state that is mostly frozen, with retention here and in a tier. Every day the job
is preempted: the checkpointer is closed, and the next one restores; every fifth day its machine is lost with its disk,
and it restores from the tier. All the while another thread verifies every byte of all checkpoints it finds, here and in
the tier. At the end every survivor is compared, bit for bit, with what was saved.

The tier is an S3 server in a process of its own (``--tier directory``: a second directory).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # after installed packages: ours may be one of them
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import torch

import datastates
from benchmarks.files import write_json
from benchmarks.progress import say
from datastates.directory import CheckpointDirectory
from datastates.tiers.fetch import fetch
from datastates.tiers.pace import Pace
from datastates.tiers.stores import open_store
from datastates.tiers.stores.base import complete_steps

MB = 1e6
SAVES_A_DAY = 24
DAYS_A_MACHINE = 5
WARM_UP_DAYS = 3
"""Retention is at work, and all that a restore and a tier need has been loaded, after so many."""


@dataclass(frozen=True)
class Plan:
    """What is simulated."""

    directory: Path
    tier: datastates.Tier
    tier_files: Path
    """Where the tier's files lie on this machine."""
    saves: int = 400
    size_mb: float = 24.0
    trained_share: float = 0.1
    """Of the state, what changes from one checkpoint to the next."""
    options: dict[str, Any] = field(default_factory=dict)


class State:
    """Frozen and trained parameters; the values after every step are known."""

    def __init__(self, plan: Plan) -> None:
        rows = max(64, int(plan.size_mb * MB / 4 / 1024))
        generator = torch.Generator().manual_seed(0)
        self._frozen = torch.randn(rows, 1024, generator=generator)
        self._rows = max(8, int(rows * plan.trained_share))
        self.live: dict[str, Any] = {"frozen": self._frozen.clone(), "trained": self._trained(-1), "progress": {}}

    def train(self, step: int) -> None:
        """Take the state to what it is after ``step``."""
        self.live["trained"].copy_(self._trained(step))
        self.live["progress"]["step"] = step

    def forget(self) -> None:
        for name in ("frozen", "trained"):
            self.live[name].zero_()
        self.live["progress"] = {"step": None}

    def wrong_bytes(self, step: int, found: dict[str, torch.Tensor]) -> int:
        """Bytes that are not what was saved at ``step``."""
        expected = {"frozen": self._frozen, "trained": self._trained(step)}
        return sum(_differing_bytes(expected[name], found.get(name)) for name in expected)

    def _trained(self, step: int) -> torch.Tensor:
        return torch.randn(self._rows, 1024, generator=torch.Generator().manual_seed(step + 1000))


def _differing_bytes(expected: torch.Tensor, found: torch.Tensor | None) -> int:
    if found is None or found.shape != expected.shape:
        return expected.nbytes
    return int((expected.view(torch.uint8) != found.contiguous().view(torch.uint8)).sum())


class Watch:
    """A thread that verifies, over and over, every byte of every checkpoint there is.

    Attributes:
        least: the fewest checkpoints, here and in the tier, that one pass over both found whole.
        least_in_tier: the same of the tier alone, from its first one on.
    """

    def __init__(self, places: tuple[Path, Path]) -> None:
        self._places = places
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")
        self.num_passes = 0
        self.least: int | None = None
        self.least_in_tier: int | None = None

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.05):
            here, there = (num_whole(place) for place in self._places)
            self.least = here + there if self.least is None else min(self.least, here + there)
            if there or self.least_in_tier is not None:
                self.least_in_tier = there if self.least_in_tier is None else min(self.least_in_tier, there)
            self.num_passes += 1


def num_whole(directory: Path) -> int:
    """Checkpoints of a directory that are whole, the newest first until retention or a lost disk removes one."""
    whole = 0
    for step in reversed(CheckpointDirectory(directory).steps()):
        with contextlib.suppress(datastates.DamagedCheckpointError, OSError):
            reader = datastates.open_checkpoint(CheckpointDirectory(directory).of_step(step), direct_io=False)
            whole += not reader.verify()
    return whole


def tree_mb(*roots: Path) -> float:
    """Blocks in use below the roots; a file with several names counts once."""
    blocks: dict[tuple[int, int], int] = {}
    for root in roots:
        for folder, _, names in os.walk(root):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    stat = os.stat(Path(folder, name))
                    blocks[stat.st_dev, stat.st_ino] = stat.st_blocks
    return sum(blocks.values()) * 512 / MB


def process_figures() -> dict[str, float]:
    """Resident memory, descriptors and threads of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss_mb": pages * os.sysconf("SC_PAGE_SIZE") / MB,
        "num_fds": len(os.listdir("/proc/self/fd")),
        "num_threads": len(os.listdir("/proc/self/task")),
    }


def simulate(plan: Plan) -> dict[str, Any]:
    """Save, be preempted, lose machines; then compare what survives."""
    state = State(plan)
    samples: list[dict[str, float]] = []
    counts = {"restores": 0, "wrong_bytes": 0, "replicated": 0, "failed": 0, "sent_mb": 0.0}
    step = 0
    with contextlib.ExitStack() as stack:
        watch: Watch | None = None
        while step < plan.saves:
            checkpoints = datastates.Checkpointer(plan.directory, replicate_to=plan.tier, **plan.options)
            with checkpoints:
                if step:
                    state.forget()
                    _restore(checkpoints, state, step, counts)
                for step in range(step, min(step + SAVES_A_DAY, plan.saves)):  # noqa: B020
                    state.train(step)
                    taken = checkpoints.checkpoint(step, state.live)
                    taken.durable.result(300)
                    taken.replicated.exception(300)
                    watch = watch or stack.enter_context(Watch((plan.directory, plan.tier_files)))
                    samples.append({"disk_mb": tree_mb(plan.directory, plan.tier_files), **process_figures()})
                step += 1
            del taken
            gc.collect()  # the next job would be another process
            stats = checkpoints.stats()
            counts["replicated"] += stats.num_replicated
            counts["failed"] += stats.num_failed + stats.num_replications_failed
            counts["sent_mb"] += stats.bytes_replicated_total / MB
            if step % (SAVES_A_DAY * DAYS_A_MACHINE) == 0 and step < plan.saves:
                shutil.rmtree(plan.directory)  # the machine is lost, with its disk
            say(f"{step} saves, {samples[-1]}")
    assert watch is not None
    survivors = _compare_survivors(plan, state)
    return _report(plan, samples, counts, watch, survivors)


def _restore(checkpoints: datastates.Checkpointer, state: State, step: int, counts: dict[str, float]) -> None:
    assert checkpoints.restore(state.live) == step, f"expected to go on with step {step}"
    assert state.live["progress"]["step"] == step - 1
    counts["wrong_bytes"] += state.wrong_bytes(step - 1, state.live)
    counts["restores"] += 1


def _compare_survivors(plan: Plan, state: State) -> dict[str, int]:
    """Every checkpoint that is left, here and fetched from the tier, against what was saved."""
    wrong_bytes, compared = 0, 0
    for path in _survivors(plan):
        reader = datastates.open_checkpoint(path)
        wrong_bytes += state.wrong_bytes(reader.manifest.step, reader.read_many(dict.fromkeys(reader.names())))
        compared += 1
    return {"restored": compared, "wrong_bytes": wrong_bytes}


def _survivors(plan: Plan) -> Iterator[Path]:
    here = CheckpointDirectory(plan.directory)
    yield from map(here.of_step, here.steps())
    store = open_store(plan.tier)
    with tempfile.TemporaryDirectory(dir=plan.directory.parent) as scratch:
        directory = CheckpointDirectory(scratch)
        for step in complete_steps(store.listing()):
            yield fetch(store, directory, step, pace=Pace(None, 60), threads=4, part_bytes=plan.tier.part_bytes)


def _report(
    plan: Plan, samples: list[dict[str, float]], counts: dict[str, float], watch: Watch, survivors: dict[str, int]
) -> dict[str, Any]:
    steady = samples[min(WARM_UP_DAYS * SAVES_A_DAY, len(samples) - 1) :]
    report: dict[str, Any] = {"saves": len(samples), "state_mb": plan.size_mb, "tier": plan.tier.url}
    for name in ("disk_mb", "rss_mb", "num_fds", "num_threads"):
        values = [sample[name] for sample in steady]
        report |= {f"{name}_first": values[0], f"{name}_last": values[-1], f"{name}_max": max(values)}
    report |= {
        "verified_min": watch.least,
        "verified_min_in_tier": watch.least_in_tier,
        "verifying_passes": watch.num_passes,
        "restores": int(counts["restores"]),
        "restored": survivors["restored"],
        "wrong_bytes": int(counts["wrong_bytes"]) + survivors["wrong_bytes"],
        "replicated": int(counts["replicated"]),
        "failed": int(counts["failed"]),
        "sent_mb": counts["sent_mb"],
    }
    return {name: round(value, 1) if isinstance(value, float) else value for name, value in report.items()}


@contextlib.contextmanager
def tier_of(kind: str, root: Path) -> Iterator[tuple[datastates.Tier, Path]]:
    """A tier, and where its files lie."""
    keep: dict[str, Any] = {"keep_last": 3, "keep_every": 7 * SAVES_A_DAY}
    if kind == "directory":
        yield datastates.Tier(str(root / "tier"), **keep), root / "tier"
        return
    from s3_server import S3Server  # type: ignore[import-not-found]

    server = S3Server(root / "s3", "bucket")
    try:
        yield datastates.Tier("s3://bucket/run", storage_options=server.options, **keep), root / "s3" / "bucket" / "run"
    finally:
        server.kill()


def main() -> None:
    """Simulate and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saves", type=int, default=400, help="checkpoints to take (default 400)")
    parser.add_argument("--size-mb", type=float, default=24, help="size of the state, MB (default 24)")
    parser.add_argument("--tier", choices=("s3", "directory"), default="s3", help="kind of tier (default s3)")
    parser.add_argument("--full-every", type=int, default=24, help="deltas between full ones; 0: none (default 24)")
    parser.add_argument("--directory", type=Path, help="where to work (default: a temporary directory)")
    parser.add_argument("--json", type=Path, help="write the report here, too")
    arguments = parser.parse_args()
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        root = Path(scratch)
        with tier_of(arguments.tier, root) as (tier, files):
            options = {"keep_last": 3, "keep_every": 7 * SAVES_A_DAY, "full_every": arguments.full_every or None}
            report = simulate(Plan(root / "run", tier, files, arguments.saves, arguments.size_mb, options=options))
    report["elapsed_s"] = round(time.monotonic() - begun_s, 1)
    for name, value in report.items():
        print(f"{name:24} {value}")
    if arguments.json:
        write_json(arguments.json, report)


if __name__ == "__main__":
    main()
