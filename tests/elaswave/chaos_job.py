"""A rank without torch for ``test_chaos.py``: it steps on, as its timeline says, and can be asked to fail."""

import itertools
import os
import socket
import sys
import threading
import time

from elaswave import timeline
from elaswave.chaos import inside


def main() -> None:
    inside.install()
    rank = int(os.environ["RANK"])
    here, there = socket.socketpair()
    threading.Thread(target=tell_of_silence, args=[here], daemon=True).start()
    threading.Thread(target=beat, daemon=True).start()
    print("READY", rank, os.getpid(), flush=True)
    for step in itertools.count():
        with timeline.phase("all-reduce" if step % 3 == 2 else "forward"):
            time.sleep(0.002)
        timeline.note("committed", step=step, rank=rank)
        if step % 20 == 0:
            print("STEP", step, flush=True)
    there.close()


def tell_of_silence(connection: socket.socket) -> None:
    print("HUNG UP", repr(connection.recv(1)), flush=True)


def beat() -> None:
    while True:
        time.sleep(0.02)
        print("BEAT", flush=True)


if __name__ == "__main__":
    sys.exit(main())
