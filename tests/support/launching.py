"""Real processes for tests: started in a group of their own, watched by reading their output, killed to the last one.

torchrun starts its workers in sessions of their own, so a signal to its process group misses them; every process
started here, and whatever it starts, therefore carries a mark in its environment by which it is found again.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

MARK = "ELASTATES_TEST_LAUNCH_ID"


class LaunchError(AssertionError):
    """A launched process did not do what the test waited for; the message ends with its output."""


class Launched:
    """One process and all that it starts; its standard output and error are read as one stream of lines.

    Owned by the ``launch`` fixture, which kills what is left of it when the test ends.
    """

    def __init__(self, command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str]) -> None:
        """Start ``command`` (its first word is looked up on PATH)."""
        self.command = [str(word) for word in command]
        self.launch_id = uuid.uuid4().hex
        self._lines: list[str] = []
        self._is_open = True
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            self.command,
            cwd=cwd,
            env={**env, MARK: self.launch_id},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="launch-reader", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        """What it has printed up to now."""
        with self._changed:
            return "".join(self._lines)

    def wait_for(self, pattern: str, *, timeout_s: float = 60) -> re.Match[str]:
        """Block until a line of output matches the regular expression, and return the first match.

        Raises:
            LaunchError: its output ended, or ``timeout_s`` passed, without one.
        """
        deadline_s = time.monotonic() + timeout_s
        num_seen = 0
        with self._changed:
            while True:
                for line in self._lines[num_seen:]:
                    if match := re.search(pattern, line):
                        return match
                num_seen = len(self._lines)
                left_s = deadline_s - time.monotonic()
                if not self._is_open or left_s <= 0:
                    why = f"within {timeout_s} s" if self._is_open else "before its output ended"
                    raise LaunchError(f"{self._name()}: no line matched {pattern!r} {why}; {self._tail()}")
                self._changed.wait(left_s)

    def wait(self, *, timeout_s: float = 60, expect: int | None = 0) -> int:
        """Block until the command has ended and return its exit status (negative: the signal that ended it).

        Args:
            timeout_s: longest wait, seconds; what still runs then is killed.
            expect: the exit status that it must have; None accepts any.

        Raises:
            LaunchError: it ran on, or ended otherwise than expected.
        """
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise LaunchError(f"{self._name()}: still running after {timeout_s} s; {self._tail()}") from None
        if expect is not None:
            self._reader.join(timeout=5)
            if status != expect:
                raise LaunchError(f"{self._name()}: exit status {status}, expected {expect}; {self._tail()}")
        return status

    def pids(self) -> list[int]:
        """Every live process of this launch, children in other sessions and orphans included."""
        wanted = f"{MARK}={self.launch_id}".encode()
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if wanted in _environment(pid)]

    def signal(self, number: int) -> None:
        """Send a signal to the command alone."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL every process of this launch, and wait until the command is reaped."""
        while pids := self.pids():  # again while there are any: one may have been forking
            for pid in pids:
                _signal_if_alive(pid, signal.SIGKILL)
            self.process.poll()
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                with self._changed:
                    self._lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._is_open = False
            self._changed.notify_all()

    def _name(self) -> str:
        return " ".join(self.command)

    def _tail(self) -> str:
        return "its output:\n" + "".join(self.output.splitlines(keepends=True)[-100:])


class Launcher:
    """Starts processes for one test; ``close`` ends them all."""

    def __init__(self, cwd: Path) -> None:
        self._cwd = cwd
        self._launched: list[Launched] = []

    def __call__(
        self, command: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str | Path] | None = None
    ) -> Launched:
        """Start ``command`` with ``env`` added to this process's environment."""
        added = {name: str(value) for name, value in (env or {}).items()}
        inherited = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONUNBUFFERED": "1"}
        launched = Launched(command, cwd=cwd or self._cwd, env={**inherited, **added})
        self._launched.append(launched)
        return launched

    def python(self, script: str | Path, *args: str | Path, env: Mapping[str, str | Path] | None = None) -> Launched:
        """Start a script with the interpreter that runs the tests; it can import what stands beside this module."""
        return self([sys.executable, script, *args], env={"PYTHONPATH": _with_support(), **(env or {})})

    def ranks(
        self,
        script: str | Path,
        *args: str | Path,
        num_ranks: int,
        port: int,
        env: Mapping[str, str | Path] | None = None,
    ) -> list[Launched]:
        """Start a script once per rank, as torchrun would but without an agent; pass ``free_port`` as ``port``."""
        job = {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks)}
        job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return [
            self.python(script, *args, env={**job, "RANK": str(rank), "LOCAL_RANK": str(rank), **(env or {})})
            for rank in range(num_ranks)
        ]

    def torchrun(
        self, script: str | Path, *args: str | Path, num_ranks: int, env: Mapping[str, str | Path] | None = None
    ) -> Launched:
        """Start a script under torchrun on this host, with a rendezvous on a port that it picks itself."""
        agent = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
        return self([*agent, script, *args], env=env)

    def close(self) -> None:
        """Kill whatever still runs and print every output, which pytest shows if the test failed."""
        for launched in self._launched:
            launched.kill()
            status = launched.process.returncode
            print(f"---- {' '.join(launched.command)} (exit status {status})\n{launched.output}", end="")


def _with_support() -> str:
    return os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(Path(__file__).parent)])


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # gone meanwhile, or not ours
        return []


def _signal_if_alive(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
