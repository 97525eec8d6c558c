"""The processes of a running job, found by their environment: whatever launched them, it need not know of us."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from elaswave.timeline import read_milestones

JOB_VARIABLES = ("ELASWAVE_JOB", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "OMPI_MCA_ess_base_jobid")
RANK_VARIABLES = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A rank's process. ``started`` tells it from a later one with the same pid."""

    pid: int
    rank: int
    job: str
    parent: int
    started: int
    """clock ticks after boot"""
    timeline: Path | None
    """directory of its timeline, if it keeps one"""
    agent: str = ""
    """unix socket of the agent of ``elastates run`` that started it, if one did"""

    @property
    def is_alive(self) -> bool:
        stat = _stat(self.pid)
        return stat is not None and stat[19] == str(self.started) and stat[0] not in ("Z", "X")

    def signal(self, number: int) -> None:
        """Send a signal to this process, and to none that got its pid later.

        Raises:
            ProcessLookupError: it has ended.
        """
        pidfd = os.pidfd_open(self.pid)
        try:
            if not self.is_alive:
                raise ProcessLookupError(f"rank {self.rank} (pid {self.pid}) has ended")
            signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)


def find_ranks(job: str = "", pid: int = 0) -> list[Target]:
    """Living ranks of a job, by rank: of the job of this name, of the one ``pid`` belongs to, or of the only one.

    Where a rank has several processes (a shell, a trainer, its data loaders), the outermost one is taken; the torchrun
    shim is none of them, but the trainer's agent. A spare is a rank once it has joined, which its timeline says.

    Raises:
        ValueError: no such job, or several and none was named.
    """
    if pid:
        job = _job_of(_environment(pid))
        if not job and not os.access(f"/proc/{pid}/environ", os.R_OK):
            raise ValueError(f"--pid must be a running process that this user may look at, got {pid}")
        if not job:
            raise ValueError(
                f"process {pid} is no rank of a job: none of {', '.join(JOB_VARIABLES)} in its environment"
            )
    found = [target for target in _all_ranks() if not job or target.job == job]
    jobs = sorted({target.job for target in found})
    if len(jobs) > 1:
        raise ValueError(f"several jobs are running: {', '.join(jobs)}; say which with --job")
    if not found:
        what = f"no ranks of job {job!r} are running" if job else "no job is running on this machine"
        raise ValueError(f"{what}, as far as this user may see")
    return _outermost(found)


def processes_of(job: str) -> list[int]:
    """Pids of all living processes of a job: its ranks, spares, and what they have started."""
    pids = [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]
    states = {pid: stat[0] for pid in pids if (stat := _stat(pid)) is not None}
    return [pid for pid, state in states.items() if state not in ("Z", "X") and _job_of(_environment(pid)) == job]


def _all_ranks() -> Iterator[Target]:
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        pid = int(entry.name)
        environment, stat = _environment(pid), _stat(pid)
        job, directory = _job_of(environment), environment.get("ELASWAVE_TIMELINE")
        rank = _first(environment, RANK_VARIABLES) or (_place_of_spare(pid, directory) if job and directory else "")
        if job and rank.isdigit() and stat is not None and stat[0] not in ("Z", "X") and not _is_shim(pid):
            yield Target(
                pid=pid,
                rank=int(rank),
                job=job,
                parent=int(stat[1]),
                started=int(stat[19]),
                timeline=Path(directory) if directory else None,
                agent=environment.get("ELASWAVE_AGENT", ""),
            )


def _is_shim(pid: int) -> bool:
    """Whether it is ``python -m elaswave.shim``: torchrun's process for a rank, and the agent of the real one."""
    try:
        return b"elaswave.shim" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _place_of_spare(pid: int, directory: str) -> str:
    """The rank that a process was given after its start, from its timeline; empty if it has none."""
    notes = read_milestones(Path(directory) / f"{pid}.timeline.jsonl")
    return next((str(note["place"]) for note in notes if note["what"] == "joins"), "")


def _outermost(found: list[Target]) -> list[Target]:
    """One process per rank: the last that was started among those whose parent is not of the same rank."""
    ranks_of = {target.pid: target.rank for target in found}
    roots = [target for target in found if ranks_of.get(target.parent) != target.rank]
    newest: dict[int, Target] = {}
    for target in sorted(roots, key=lambda target: target.started):
        newest[target.rank] = target
    return [newest[rank] for rank in sorted(newest)]


def _job_of(environment: dict[str, str]) -> str:
    return _first(environment, JOB_VARIABLES)


def _first(environment: dict[str, str], names: tuple[str, ...]) -> str:
    return next((environment[name] for name in names if environment.get(name)), "")


def _environment(pid: int) -> dict[str, str]:
    """As the process was started with; empty if it is gone or not ours to look at."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.partition("=") for item in raw.decode(errors="replace").split("\0"))
    return {name: value for name, _, value in pairs}


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat behind the command's name: state, parent, ...; ``None`` if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
