"""A real Slurm for tests: munge, one slurmctld and some slurmd on this machine, in one directory, on free ports.

Every node is a ``slurmd -N`` of its own with its own port and spool directory; all are this host. They are ended by
pid. Needs root and the Debian packages of ``INSTALL``.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

INSTALL = "apt-get install -y slurm-wlm munge"
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol")
START_TIMEOUT_S = 60


def why_not() -> str:
    """Why no Slurm can be started here, with what to type; empty if one can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"needs {', '.join(missing)}: {INSTALL}"
    return "" if os.geteuid() == 0 else "a Slurm of one's own needs root"


class Cluster:
    """A running Slurm. ``env`` leads its commands to it."""

    def __init__(self, directory: Path, num_nodes: int) -> None:
        self.directory = directory
        self.nodes = [f"n{number}" for number in range(1, num_nodes + 1)]
        self._ports = _free_ports(num_nodes + 1)
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.config = directory / "slurm.conf"
        self.env = {**os.environ, "PATH": _path(), "SLURM_CONF": str(self.config)}

    def start(self) -> None:
        """Return once all nodes are idle."""
        self._write_config()
        self._start_munge()
        self._daemon("slurmctld", ["slurmctld", "-D", "-i", "-f", self.config])
        for node in self.nodes:
            self.start_node(node)
        self._wait_for("idle", self.nodes)

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node; returns before it is ready."""
        self._daemon(node, ["slurmd", "-D", "-N", node, "-f", self.config])

    def command(self, *words: str | Path) -> str:
        """Output of a Slurm command that must succeed."""
        done = subprocess.run(
            [str(word) for word in words],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == 0, f"{words} ended with {done.returncode}: {done.stderr}{self.logs()}"
        return done.stdout

    def kill_node(self, node: str) -> None:
        """What a power failure does to a node: its slurmd and all job processes on it are gone at once."""
        victims = [self._daemons[node].pid, *self._step_processes(node)]
        for pid in victims:
            _signal(pid, signal.SIGKILL)
        self._daemons[node].wait()

    def close(self) -> None:
        """End everything that was started, jobs included."""
        for node in self.nodes:
            for pid in self._step_processes(node):
                _signal(pid, signal.SIGKILL)
        for daemon in reversed(self._daemons.values()):
            daemon.kill()
            daemon.wait()

    def logs(self) -> str:
        """The ends of all daemons' logs."""
        return "".join(f"\n---- {log.name}\n{log.read_text()[-2000:]}" for log in sorted(self.directory.glob("*.log")))

    # ---- parts ------------------------------------------------------------------------------------------------------

    def _write_config(self) -> None:
        settings = {
            "ClusterName": "test",
            "SlurmctldHost": f"{socket.gethostname()}(127.0.0.1)",
            "SlurmctldPort": self._ports[0],
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.directory}/munge.socket",
            "CredType": "cred/munge",
            "StateSaveLocation": self.directory / "state",
            "SlurmdSpoolDir": f"{self.directory}/spool-%n",
            "SlurmctldPidFile": self.directory / "slurmctld.pid",
            "SlurmdPidFile": f"{self.directory}/slurmd-%n.pid",
            "SlurmctldLogFile": self.directory / "slurmctld.log",
            "SlurmdLogFile": f"{self.directory}/slurmd-%n.log",
            "SlurmdParameters": "config_overrides",
            "ProctrackType": "proctrack/pgid",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core",
            "SchedulerType": "sched/backfill",
            "SchedulerParameters": "batch_sched_delay=0,sched_min_interval=0",
            "MpiDefault": "none",
            "ReturnToService": 2,
            "SlurmdTimeout": 10,
            "KillWait": 5,
            "MessageTimeout": 30,
            "JobRequeue": 1,
            "SwitchType": "switch/none",
        }
        lines = [f"{name}={value}" for name, value in settings.items()]
        for node, port in zip(self.nodes, self._ports[1:], strict=True):
            lines.append(f"NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 Port={port} CPUs=4 State=UNKNOWN")
        lines.append(f"PartitionName=all Nodes={','.join(self.nodes)} Default=YES MaxTime=INFINITE State=UP")
        (self.directory / "state").mkdir()
        for node in self.nodes:
            (self.directory / f"spool-{node}").mkdir()
        self.config.write_text("\n".join(lines) + "\n")

    def _start_munge(self) -> None:
        key = self.directory / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = {
            "socket": "munge.socket",
            "pid-file": "munged.pid",
            "log-file": "munged.log",
            "seed-file": "munged.seed",
        }
        options = [f"--{name}={self.directory / file}" for name, file in files.items()]
        self._daemon("munge", ["munged", "--foreground", "--force", f"--key-file={key}", *options])
        _until(lambda: (self.directory / "munge.socket").exists(), "munged has no socket")

    def _daemon(self, name: str, command: list[str | Path]) -> None:
        with open(self.directory / f"{name}.out.log", "ab") as out:
            self._daemons[name] = subprocess.Popen(
                [str(word) for word in command], env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    def _wait_for(self, state: str, nodes: list[str]) -> None:
        def are() -> bool:
            ended = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            assert not ended, f"{ended} ended: {self.logs()}"
            told = subprocess.run(["sinfo", "-hNo", "%N %T"], env=self.env, capture_output=True, text=True, check=False)
            states = dict(line.split() for line in told.stdout.splitlines())
            return all(states.get(node) == state for node in nodes)

        _until(are, f"{nodes} are not {state}", self.logs)

    def _step_processes(self, node: str) -> list[int]:
        """The steps' daemons on a node, known by their log, and what they started, known by its environment."""
        wanted = {f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={self.config}".encode()}
        log = str(self.directory / f"slurmd-{node}.log")
        return [
            pid
            for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
            if wanted <= set(_read(pid, "environ").split(b"\0"))
            or (_read(pid, "cmdline").startswith(b"slurmstepd") and log in _open_files(pid))
        ]


@contextmanager
def cluster(directory: Path, num_nodes: int) -> Iterator[Cluster]:
    """A Slurm that lives inside the ``with``."""
    with ExitStack() as ends:
        one = Cluster(directory, num_nodes)
        ends.callback(one.close)
        one.start()
        yield one


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _until(condition: Callable[[], bool], complaint: str, about: Callable[[], str] = str) -> None:
    end_s = time.monotonic() + START_TIMEOUT_S
    while not condition():
        assert time.monotonic() < end_s, f"{complaint} after {START_TIMEOUT_S} s{about()}"
        time.sleep(0.02)


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has ended
        return b""


def _open_files(pid: int) -> list[str]:
    try:
        return [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
    except OSError:  # it has ended
        return []


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
