"""A rank for tests of replacements: says which process it is; rank 0 ends when rank 1 has died for the last time."""

import os
import sys
import threading

from elaswave import agent_link

rank, attempt = int(os.environ["RANK"]), os.environ["ELASWAVE_ATTEMPT"]
about = f"spare {os.environ.get('ELASWAVE_SPARE', 0)} torch {'torch' in sys.modules} argv {sys.argv[1:]}"
link = agent_link.of_process()
assert link
over = threading.Event()


def hear(event: agent_link.Message) -> None:
    if event["event"] == "death" and not event["is_replaced"]:
        over.set()


link.subscribe(hear)
os.write(1, f"pid {os.getpid()} is rank {rank} attempt {attempt} {about}\n".encode())
over.wait(60)
