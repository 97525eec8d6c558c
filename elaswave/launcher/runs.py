"""One node's part in a job, from its command line to its exit status: the agent's runs, and what they leave behind."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from elaswave import exits
from elaswave.errors import LaunchError
from elaswave.launcher import plan
from elaswave.launcher.agent import Agent
from elaswave.launcher.console import Console
from elaswave.launcher.options import Options


def run(options: Options, *, is_shim: bool = False) -> int:
    """Be this node's agent until the job is over; returns the exit status.

    Args:
        options: what to run.
        is_shim: torchrun started this process as a rank (elaswave/shim.py): the worker is that rank and keeps what
            torchrun has put into the environment.
    """
    _set_up_standard_streams()
    name = "elaswave.shim" if is_shim else "elastates"
    with Console(f"{name} {options.node_rank}") as console:
        try:
            if options.result_dir and not options.joins:
                _leave_result(options.result_dir, options.node_rank, None)  # that of an earlier job is not this one's
            agent = Agent(options, console, is_shim=is_shim)
            status = _status_of(agent, console)
            for number in range(1, options.max_restarts + 1):
                if status == exits.FINISHED or not agent.may_restart:
                    break
                console.say(f"the job begins anew; {options.max_restarts - number} restarts are left")
                agent = Agent(plan.of_restart(options, number), console, is_shim=is_shim, begins_anew=True)
                status = _status_of(agent, console)
            if options.result_dir and agent.has_number:
                _leave_result(options.result_dir, agent.node, status)
            return status
        except OSError as error:
            console.say(f"{type(error).__name__}: {error}")
            return exits.USAGE


def _status_of(agent: Agent, console: Console) -> int:
    """Of one run of the job."""
    try:
        return asyncio.run(agent.run())
    except asyncio.CancelledError:  # by a signal, before anything was started
        return exits.from_wait(-agent.asked) if agent.asked else exits.NOT_MET
    except LaunchError as error:
        console.say(str(error))
        agent.may_restart = False
        return exits.NOT_MET


def _set_up_standard_streams() -> None:
    """Where the agent was started without some of them, nothing else may get their numbers, which it writes to.

    The workers are in sessions of their own and could not read the terminal; what they read is empty.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.dup2(fd, 0)
    os.close(fd)


def _leave_result(directory: Path, node: int, status: int | None) -> None:
    """Write the exit status for whoever asks after the job; None: take away what is there."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"node-{node}"
    if status is None:
        file.unlink(missing_ok=True)
    else:
        file.write_text(f"{status}\n")
