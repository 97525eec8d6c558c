"""Exit statuses with a meaning of their own, the same for a worker and for the launcher that reports it."""

from __future__ import annotations

import signal

FINISHED = 0
USAGE = 2
"""The command line or the environment is wrong; nothing was started."""
NOT_MET = 85
"""The agents of the job did not all meet in time; nothing was started."""
FENCED = 86
"""The others agreed on a view without this process: it must not write, send or publish any more."""
NO_QUORUM = 87
"""This side of a partition is not the majority, and no witness decided for it."""
STATE_LOST = 88
"""All that live are newcomers, and whoever could have let them in is dead: the state is in checkpoints only."""

_MEANINGS = {FINISHED: "finished", FENCED: "was fenced", NO_QUORUM: "lost its quorum"}


def from_wait(code: int) -> int:
    """A shell's status for what ``subprocess`` reports: a signal's number is negated there, 128 is added here."""
    return 128 - code if code < 0 else code


def describe(status: int) -> str:
    """How a process ended, in words: "was killed by SIGKILL", "exited with 3"."""
    if status in _MEANINGS:
        return _MEANINGS[status]
    try:
        return f"was killed by {signal.Signals(status - 128).name}"
    except ValueError:
        return f"exited with {status}"
