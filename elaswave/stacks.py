"""Stacks of all threads on a signal, even while a thread holds the GIL in a C loop: the handler is C and takes no lock.

They go to a memfd of this process, which its agent reads: a hung process could not send them.
"""

from __future__ import annotations

import faulthandler
import os
import signal

SIGNAL = signal.SIGRTMIN + 4  # real-time: SIGUSR1 and SIGUSR2 belong to the training script


def register() -> int:
    """Dump upon ``SIGNAL`` from now on; returns the descriptor of the file that grows."""
    fd = os.memfd_create("elastates-stacks", os.MFD_CLOEXEC)
    os.set_blocking(fd, False)
    faulthandler.register(SIGNAL, file=fd, all_threads=True)
    return fd
