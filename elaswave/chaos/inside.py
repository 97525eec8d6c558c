"""Failures that a process must do to itself, asked for by signals: a training thread that sleeps, a GIL that is held.

``run.join()`` installs the handlers where ELASWAVE_CHAOS is set; nothing else does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time

VARIABLE = "ELASWAVE_CHAOS"
SLEEP = signal.SIGRTMIN + 5
HOLD_GIL = signal.SIGRTMIN + 6
FOREVER_S = 3600


def install() -> bool:
    """Listen, if the environment asks for it; only on the main thread. Returns whether it does."""
    if not os.environ.get(VARIABLE):
        return False
    signal.signal(SLEEP, _sleep)
    signal.signal(HOLD_GIL, _hold_gil)
    return True


def _sleep(_number: int, _frame: object) -> None:
    """In the thread that trains, between two of its bytecodes; other threads run on."""
    time.sleep(FOREVER_S)


def _hold_gil(_number: int, _frame: object) -> None:
    """Inside a C function that never lets go of the GIL: no Python thread of this process runs any more."""
    mutex = ctypes.create_string_buffer(64)  # zeros are an unlocked mutex that its owner cannot lock again
    for _ in range(2):  # unlike sleep, it does not return when a signal, such as that for stacks, was handled
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)
