"""A rank for tests of the hang detector: marks steps without torch, then does what its argument says.

marking_rank.py RANK:HOW ...      HOW: sleep, gil, stop, pause, none; other ranks answer the news of a hang by a mark,
or, where HOW is "silent", do not
"""

import ctypes
import os
import signal
import sys
import threading

from elaswave import agent_link, stacks
from elaswave.marks import MarkWriter

RANK = int(os.environ["RANK"])
NUM_RANKS = int(os.environ["WORLD_SIZE"])
FOR_EVER_S = 600


def hold_the_gil() -> None:
    """A wait in C, for a lock that this thread has itself, which no signal ends and which gives the GIL to nobody."""
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)


def main() -> None:
    how = dict(word.split(":") for word in sys.argv[1:]).get(str(RANK), "none")
    link = agent_link.of_process()
    assert link
    marks, told, dead, all_there = MarkWriter(), threading.Event(), threading.Event(), threading.Event()
    there = set()

    def hear(event: agent_link.Message) -> None:
        if event["event"] == "hang":
            told.set()
        if event["event"] == "death":
            dead.set()
        if event["event"] == "joined":
            there.add(event["rank"])
            if len(there) == NUM_RANKS:
                all_there.set()

    link.show(marks_fd=marks.fd, stacks_fd=stacks.register(), stacks_signal=stacks.SIGNAL)
    link.subscribe(hear)
    for step in range(2):
        marks.begin(step)
        marks.commit(step)
    if how == "sleep":
        marks.begin(2)  # before anybody else
    link.hello(str(RANK), "")
    assert all_there.wait(60)  # else the first would be silent alone
    if how != "sleep":
        marks.begin(2)
    os.write(1, f"rank {RANK} is in step 2\n".encode())
    if how == "sleep":
        threading.Event().wait(FOR_EVER_S)
    elif how == "gil":
        hold_the_gil()
    elif how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif how == "pause":
        marks.pause("evaluation")
        assert dead.wait(60)
        marks.resume()
    elif how == "silent":
        assert dead.wait(60)
    else:
        assert told.wait(60)
        while not dead.wait(0.05):
            marks.alive()
    marks.commit(2)
    os.write(1, f"done {RANK}\n".encode())


main()
