"""``elastates run``: start the ranks of a job so that the death of one is only the death of one.

Source: our own design, on the process contexts of ``torch.distributed.elastic``; docs/launcher.md is the manual.

An *agent* a node starts a *worker* per rank, each in a process context of its own, and *spares* that wait with torch
imported. What happens to any process of the job is an *event* (events.py), told to all agents and to all workers.

    options    the command line, as a frozen dataclass       plan       who gets which rank, environment and log
    roster     what became of every rank; pure               hangs      which ranks hang; pure
    worker     one process in its own process context        door       the agent's unix socket for its workers
    channel    newline-delimited JSON                        links      agents to agents, over TCP
    console    prefixes, and never blocks the agent          agent      all of it together
    places     who takes a dead rank's place; pure           succession has the place taken, by somebody else if need be
    runs       the agent's runs, and the exit status
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a job's part on this node; returns the exit status (elaswave/exits.py)."""
    from elaswave import exits
    from elaswave.launcher.options import parse

    try:
        options = parse(arguments)
    except SystemExit as stop:  # --help, or wrong usage: argparse has said so
        return exits.USAGE if stop.code else exits.FINISHED
    try:
        from elaswave.launcher.runs import run
    except ImportError as error:
        print(f"elastates run: {error}; install torch", file=sys.stderr)
        return exits.USAGE
    except KeyboardInterrupt:  # while torch is imported: the agent does not listen to signals yet
        return exits.from_wait(-signal.SIGINT)
    return run(options)
