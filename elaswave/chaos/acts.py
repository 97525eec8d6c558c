"""What can be done to a process of a job: one function per kind, which returns how to end it, if it has an end.

None of them needs the job's help but ``sleep`` and ``hold_gil``, which a process must do to itself
(:mod:`elaswave.chaos.inside`). ``partition`` needs root; ``slow`` uses a CPU quota where cgroups can be written,
else it stops and continues the process a hundred times a second.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from elaswave.chaos import inside
from elaswave.chaos.targets import Target

PIDFD_GETFD = 438
SLICE_S = 0.01
CGROUP = Path("/sys/fs/cgroup/cpu")
QUOTA_PERIOD_US = 100_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What some acts need besides a process."""

    link: str = ""
    """NAMESPACE:INTERFACE that a partition takes down"""
    disk: Path | None = None
    """directory on the file system that is filled"""
    cpu_share: float = 0.1
    """of one core, left to a process that is slowed down"""

    def __post_init__(self) -> None:
        if not 0 < self.cpu_share < 1:
            raise ValueError(f"--cpu-share must be between 0 and 1, both excluded, got {self.cpu_share:g}")


End = Callable[[], None]


def kill(target: Target, _: Surroundings) -> End | None:
    """SIGKILL."""
    target.signal(signal.SIGKILL)
    return None


def stop(target: Target, _: Surroundings) -> End:
    """SIGSTOP, and SIGCONT at the end: a sleeper that wakes up."""
    target.signal(signal.SIGSTOP)
    return lambda: _signal_if_alive(target, signal.SIGCONT)


def sleep(target: Target, _: Surroundings) -> None:
    """The thread that trains sleeps for good; its other threads run on."""
    _ask(target, inside.SLEEP)


def hold_gil(target: Target, _: Surroundings) -> None:
    """No Python thread of the process runs any more."""
    _ask(target, inside.HOLD_GIL)


def slow(target: Target, around: Surroundings) -> End:
    """The process gets a share of a core, and all of them back at the end."""
    return limit_cpu(target.pid, around.cpu_share) or _by_turns(target, around.cpu_share)


def limit_cpu(pid: int, cores: float) -> End | None:
    """A CPU quota for a process, by a cgroup of its own; ``None`` where cgroups cannot be written."""
    with contextlib.suppress(OSError):
        return _under_quota(pid, cores)
    return None


def agent(target: Target, _: Surroundings) -> End | None:
    """SIGKILL to the agent: the process that started this one."""
    os.kill(_agent_of(target), signal.SIGKILL)
    return None


def _agent_of(target: Target) -> int:
    """Its pid. Who has lost its parent has another, init or any other reaper: where there is a socket, it knows."""
    pid = target.parent
    if target.agent:
        with socket.socket(socket.AF_UNIX) as probe:
            is_there = probe.connect_ex(target.agent.replace("@", "\0", 1)) == 0
            peer = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")) if is_there else b""
        pid = struct.unpack("3i", peer)[0] if peer else 0
    if pid <= 1:
        raise ValueError(f"rank {target.rank} (pid {target.pid}) has no agent any more")
    return pid


def reset(target: Target, _: Surroundings) -> None:
    """Every connection of the process breaks; it lives on."""
    pidfd = os.pidfd_open(target.pid)
    try:
        for entry in os.scandir(f"/proc/{target.pid}/fd"):
            with contextlib.suppress(OSError):  # closed meanwhile
                if os.readlink(entry.path).startswith("socket:"):
                    _shut_down(pidfd, int(entry.name))
    finally:
        os.close(pidfd)


def partition(_target: Target, around: Surroundings) -> End:
    """The cable of a network namespace is cut, and plugged in again at the end."""
    namespace, _, interface = around.link.partition(":")
    if not interface:
        raise ValueError(f"a partition needs --link NAMESPACE:INTERFACE, got {around.link!r}")

    def turn(how: str) -> None:
        command = ["ip", "netns", "exec", namespace, "ip", "link", "set", interface, how]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise OSError(f"{' '.join(command)}: exit status {done.returncode}: {done.stderr.strip()}")

    turn("down")
    return lambda: turn("up")


def full_disk(_: Target, around: Surroundings) -> End:
    """The file system of ``--disk`` is filled to its last block, and freed at the end."""
    if around.disk is None:
        raise ValueError("full_disk needs --disk DIRECTORY")
    filler = around.disk / f".chaos-{os.getpid()}"
    with open(filler, "wb") as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(around.disk).free))
    with open(filler, "ab") as file, contextlib.suppress(OSError):
        while True:  # what was freed meanwhile, and what the estimate missed
            file.write(bytes(4096))
            file.flush()
    return lambda: filler.unlink(missing_ok=True)


ACTS: dict[str, Callable[[Target, Surroundings], End | None]] = {
    act.__name__: act for act in (kill, stop, sleep, hold_gil, slow, agent, reset, partition, full_disk)
}
LASTING = ("stop", "slow", "partition", "full_disk")
"""Those that have an end."""
DEADLY = ("kill", "sleep", "hold_gil")
"""Those that a rank does not survive: a hang is found and fenced."""
WITHOUT_VICTIM = ("partition", "full_disk")
"""Those that are done to no process, whichever is drawn."""


def _ask(target: Target, number: int) -> None:
    caught = int(_status(target.pid, "SigCgt"), 16)
    if not caught >> (number - 1) & 1:
        raise ValueError(
            f"rank {target.rank} (pid {target.pid}) does not listen: start the job with {inside.VARIABLE}=1, and call "
            "elaswave.join() in it"
        )
    target.signal(number)


def _signal_if_alive(target: Target, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        target.signal(number)


def _shut_down(pidfd: int, fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    copy = libc.syscall(PIDFD_GETFD, pidfd, fd, 0)
    if copy < 0:
        number = ctypes.get_errno()
        raise PermissionError(number, os.strerror(number)) if number == 1 else OSError(number, os.strerror(number))
    with socket.socket(fileno=copy) as connection, contextlib.suppress(OSError):  # a listener, or not connected
        connection.getpeername()
        connection.shutdown(socket.SHUT_RDWR)


def _under_quota(pid: int, share: float) -> End:
    group = CGROUP / f"elastates-chaos-{pid}"
    group.mkdir(exist_ok=True)  # whoever limited an earlier process with this pid may not have lived to end it
    home = CGROUP / _cgroup_of(pid) / "cgroup.procs"

    def end() -> None:
        with contextlib.suppress(OSError):  # the process has ended, and left the group by that
            home.write_text(str(pid))
        group.rmdir()

    try:
        (group / "cpu.cfs_period_us").write_text(str(QUOTA_PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(round(QUOTA_PERIOD_US * share)))
        (group / "cgroup.procs").write_text(str(pid))
    except OSError:
        group.rmdir()
        raise
    return end


def _by_turns(target: Target, share: float) -> End:
    over = threading.Event()

    def turns() -> None:
        while not over.wait(SLICE_S * share) and target.is_alive:
            _signal_if_alive(target, signal.SIGSTOP)
            over.wait(SLICE_S * (1 - share))
            _signal_if_alive(target, signal.SIGCONT)

    thread = threading.Thread(target=turns, name="chaos-slow", daemon=True)
    thread.start()

    def end() -> None:
        over.set()
        thread.join()

    return end


def _cgroup_of(pid: int) -> str:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(","):
            return path.lstrip("/")
    return ""


def _status(pid: int, field: str) -> str:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return value.strip()
    raise ValueError(f"/proc/{pid}/status has no {field}")
