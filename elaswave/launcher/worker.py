"""One process of the job in a ``torch.distributed.elastic`` process context of its own: its death ends nothing else."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, PContext, start_processes

from elaswave import exits
from elaswave.launcher.plan import WorkerPlan

# It reports in its own words, with tracebacks, what the agent says in a line: every end of a process, and that signal
# handlers are not its business here (contexts are started by a thread, so that it leaves the agent's handlers alone).
logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)


class _Logs(LogsSpecs):
    """Files chosen by us: torch's own layout makes a directory for each context and starts again in it."""

    def __init__(self, plan: WorkerPlan) -> None:
        super().__init__(str(plan.out.parent) if plan.out else None)
        self._plan = plan

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """One process, so one of each; no ``tee``, which is the console's."""
        error = str(self._plan.err.with_suffix(".json")) if self._plan.err else ""
        envs[0]["TORCHELASTIC_ERROR_FILE"] = error
        return LogsDest(stdouts={0: _name(self._plan.out)}, stderrs={0: _name(self._plan.err)}, error_files={0: error})

    @property
    def root_log_dir(self) -> str:
        """Empty where there are no files."""
        return self._root_log_dir or ""


class Worker:
    """A started process, leader of a session and process group of its own. It is a zombie until ``reap``."""

    def __init__(self, plan: WorkerPlan) -> None:
        """Start it. Called on a thread other than the main one, see above."""
        self.plan = plan
        self._context: PContext = start_processes(
            name="worker",
            entrypoint=plan.command[0],
            args={0: plan.command[1:]},
            envs={0: dict(plan.env)},
            logs_specs=_Logs(plan),
        )
        self.pid = self._context.pids()[0]
        self.pidfd = os.pidfd_open(self.pid)  # readable once it has ended
        self.is_reaped = False

    def signal(self, number: int) -> None:
        """To the process alone: what it has started itself is its own affair."""
        if not self.is_reaped:
            signal.pidfd_send_signal(self.pidfd, number)

    def kill(self) -> None:
        """SIGKILL it and everything that it started."""
        if not self.is_reaped:
            os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> int:
        """Collect an ended process, and end what it left behind; returns its status, as a shell counts.

        The group is killed first, while the zombie still keeps its number from being given to others.
        """
        self.kill()
        result = self._context.wait(0)
        assert result is not None, f"process {self.pid} was reported ended but runs"
        self.is_reaped = True
        os.close(self.pidfd)
        return exits.from_wait(result.failures[0].exitcode) if result.failures else exits.FINISHED


def _name(path: Path | None) -> str:
    return str(path) if path else ""
