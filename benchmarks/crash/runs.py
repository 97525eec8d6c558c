"""The runs that are recorded: what happens in them, and what they were told is durable.

Each has a root of its own, a directory that exists before; checkpoints go to ``runs/gpt`` below it, which the first job
makes. Where a run needs a past, it is made first and taken for durable.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.crash.job import Job
from benchmarks.crash.log import Operation, load, merged

REPOSITORY = Path(__file__).resolve().parents[2]
RUN = "runs/gpt"
"""The directory of checkpoints below a run's root."""
TIER = "tiers/second/gpt"
"""The directory that checkpoints are copied to, where they are."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A recorded run."""

    name: str
    root: Path
    initial: Mapping[str, bytes]
    """What was there before, durably: path below the root -> content."""
    log: Sequence[Operation]
    promised: Mapping[int, int] = field(default_factory=dict)
    """Durable before the log begins: step -> generation."""
    elsewhere: Mapping[int, int] = field(default_factory=dict)
    """What may come from a tier: step -> generation."""
    damaged: frozenset[int] = frozenset()
    """Steps whose damage the run was to find."""
    num_ranks: int = 1
    judged: str = RUN
    """The directory of checkpoints that must hold what was promised."""
    told: str = "durable"
    """The mark that promises: ``replicated`` where a tier is judged."""


def saving(root: Path, backend: str = "threads") -> Run:
    """Six checkpoints, two of them in flight at once, with retention; the first one makes the directory."""
    together = Job(directory=_directory(root), steps=(0, 1), together=True, keep_last=None, backend=backend)
    one_by_one = Job(directory=_directory(root), steps=(2, 3, 4, 5), backend=backend)
    logs = _record(root, [[together], [one_by_one]])
    return Run(name=f"saving ({backend})", root=root, initial={}, log=merged(logs))


def deltas(root: Path) -> Run:
    """Seven checkpoints, two in three of them deltas that link to earlier files, with retention."""
    job = Job(directory=_directory(root), steps=tuple(range(7)), full_every=3)
    return Run(name="deltas", root=root, initial={}, log=merged(_record(root, [[job]])))


def two_ranks(root: Path) -> Run:
    """Three checkpoints of two ranks, with retention; each rank is taken for a machine of its own."""
    root.mkdir(parents=True)
    jobs = [Job(directory=_directory(root), steps=(0, 1, 2), rank=rank, num_ranks=2) for rank in range(2)]
    logs = _record(root, [jobs])
    return Run(name="two ranks", root=root, initial={}, log=merged(logs, [0, 1]), num_ranks=2)


def replacing(root: Path) -> Run:
    """The newest of three checkpoints is damaged; a job finds out, takes its step again and goes on."""
    _record(root, [[Job(directory=_directory(root), steps=(0, 1, 2), keep_last=None)]])
    data = root / RUN / "step-00000002" / "rank-00000.safetensors"
    content = bytearray(data.read_bytes())
    content[-7] ^= 4
    data.write_bytes(content)
    initial = _files_below(root)
    logs = _record(root, [[Job(directory=_directory(root), steps=(2, 3), generation=1, keep_last=3)]], "again")
    return Run(
        name="replacing a damaged step",
        root=root,
        initial=initial,
        log=merged(logs),
        promised={0: 0, 1: 0},
        damaged=frozenset({2}),
    )


KILLED_AT = {
    "before it publishes": ("rename", 1),
    "before the publishing is durable": ("fsync", 3),
    "while retention renames": ("fsync", 4),
    "while retention removes": ("unlink", 2),
}


def going_on(root: Path, where: str) -> Run:
    """A job is killed in its only checkpoint, at one of ``KILLED_AT``; the next one clears up, restores, goes on."""
    before = Job(directory=_directory(root), steps=(0, 1, 2), keep_last=None)
    killed = Job(directory=_directory(root), steps=(3,), stops_at=KILLED_AT[where])
    after = Job(directory=_directory(root), steps=(4, 5), generation=1)
    return Run(
        name=f"going on after a kill {where}",
        root=root,
        initial={},
        log=merged(_record(root, [[before], [killed], [after]])),
    )


def failing(root: Path) -> Run:
    """A checkpoint's last fsync fails: it is taken back, and the next ones succeed."""
    before = Job(directory=_directory(root), steps=(0, 1), keep_last=None)
    fails = Job(directory=_directory(root), steps=(2, 3, 2, 4), generation=1, fails_at=("fsync", 3))
    return Run(name="taking back a checkpoint", root=root, initial={}, log=merged(_record(root, [[before], [fails]])))


def copying(root: Path) -> Run:
    """Deltas copied to a second directory; the job is killed while retention renames there, and the next goes on.

    The killed one syncs two directories here, and there those of writer.json, uploading.json, manifest and step.
    """
    directory, tier = _directory(root), str(root.resolve() / TIER)
    before = Job(directory=directory, steps=(0, 1, 2), full_every=3, tier=tier)
    killed = Job(
        directory=directory,
        steps=(3,),
        restores=False,
        keep_last=None,
        tier=tier,
        tier_keep_last=1,
        stops_at=("fsync", 2 + 4 + 1),
    )
    after = Job(directory=directory, steps=(4, 5), generation=1, tier=tier)
    return Run(
        name="copying to a second directory",
        root=root,
        initial={},
        log=merged(_record(root, [[before], [killed], [after]])),
        judged=TIER,
        told="replicated",
    )


def fetching(root: Path) -> Run:
    """The directory is lost: a job fetches the newest checkpoint, a delta, from the second one, and goes on."""
    directory, tier = _directory(root), str(root.resolve() / TIER)
    _record(root, [[Job(directory=directory, steps=(0, 1, 2), full_every=3, tier=tier)]])
    shutil.rmtree(root / "runs")
    initial = _files_below(root)
    logs = _record(root, [[Job(directory=directory, steps=(3, 4), keep_last=2, tier=tier)]], "again")
    name = "fetching from a second directory"
    return Run(name=name, root=root, initial=initial, log=merged(logs), elsewhere={1: 0, 2: 0})


def all_runs(root: Path) -> list[Run]:
    """Every kind of run, below ``root``."""
    return [
        saving(root / "threads"),
        saving(root / "io_uring", backend="auto"),
        deltas(root / "deltas"),
        two_ranks(root / "two"),
        replacing(root / "replacing"),
        failing(root / "failing"),
        copying(root / "copying"),
        fetching(root / "fetching"),
        *(going_on(root / f"killed{number}", where) for number, where in enumerate(KILLED_AT)),
    ]


def _directory(root: Path) -> str:
    root.mkdir(parents=True, exist_ok=True)
    return str(root.resolve() / RUN)


def _files_below(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def _record(root: Path, phases: Sequence[Sequence[Job]], name: str = "request") -> list[list[Operation]]:
    """Run jobs in a process of their own; their logs, phase by phase."""
    request = root.parent / f"{root.name}.{name}"
    request.write_text(json.dumps([[asdict(job) for job in jobs] for jobs in phases]))
    run_worker("benchmarks.crash.worker", str(request))
    return [
        load(Path(f"{request}.{phase}.{number}.log"))
        for phase, jobs in enumerate(phases)
        for number in range(len(jobs))
    ]


def run_worker(module: str, *arguments: str) -> str:
    """Run a module of this package in a new process; returns what it printed.

    Raises:
        RuntimeError: it failed; quotes what it said.
    """
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(REPOSITORY)]))  # what is installed first
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-P", "-m", module, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
