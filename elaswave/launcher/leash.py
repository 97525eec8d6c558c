"""Run a Python program that must not outlive the process that started it: ``python -m elaswave.launcher.leash ...``.

For torchrun and resource managers: when they kill a shim or an agent they want its ranks gone, and do not know them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # kept over exec


def main() -> None:
    """Become ``python -u`` with this program's arguments."""
    parent, words = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was killed before the line above
        sys.exit(1)
    os.execv(sys.executable, [sys.executable, "-u", *words])


if __name__ == "__main__":
    main()
