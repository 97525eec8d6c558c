"""What becomes of open checkpointers when their process forks, or exits without ``close()``.

At exit they are drained, for a while: the last checkpoint of a script that forgot to close is worth having, and a
thread that comes back from native code while the interpreter goes down would abort the process (found with Python
3.11: one exit in six, "terminate called without an active exception").

A forked child has no threads of its parent's: its copies are closed at once and touch nothing.
"""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Any, Protocol

from datastates.sight import bus

EXIT_TIMEOUT_S = 30.0
"""Longest drain at exit, seconds: a peer may be dead, or storage hang."""


class Open(Protocol):
    """Something with threads at work."""

    def _close_at_exit(self) -> None: ...
    def _close_in_child(self) -> None: ...


_open: weakref.WeakSet[Any] = weakref.WeakSet()


def opened(one: Open) -> None:
    """Look after ``one`` from now on."""
    _open.add(one)


def closed(one: Open) -> None:
    """The inverse of :func:`opened`. Idempotent."""
    _open.discard(one)


def _at_exit() -> None:
    for one in list(_open):
        one._close_at_exit()
    bus.close(EXIT_TIMEOUT_S)  # what the drains told, too


def _in_child() -> None:
    for one in list(_open):
        one._close_in_child()
    _open.clear()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_in_child)
