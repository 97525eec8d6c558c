"""A member for ``test_views_apart.py``: on a host of its own, as the links see it, so that nobody can kill it.

``python views_links_job.py RANK NUM_RANKS DIRECTORY [WITNESS]``; prints what becomes of it.
"""

import os
import signal
import sys
from pathlib import Path

import torch  # noqa: F401  (the native module needs its libraries)
from polling import until

from elaswave.views import ViewService
from elaswave.witness import FileWitness

import _elastates

RANK, NUM_RANKS, DIRECTORY = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])


def say(word: str) -> None:
    os.write(1, f"{word}\n".encode())


def meet(handle: str) -> list[str]:
    (DIRECTORY / f"new-{RANK}").write_text(handle)
    (DIRECTORY / f"new-{RANK}").rename(DIRECTORY / f"handle-{RANK}")
    places = [DIRECTORY / f"handle-{rank}" for rank in range(NUM_RANKS)]
    until(lambda: all(place.exists() for place in places))
    return [place.read_text() for place in places]


endpoint = _elastates.Endpoint.start("apart", "sixteen bytes or more", ["127.0.0.1"], 2.0, f"host-{RANK}")
service = ViewService(endpoint, "all", FileWitness(Path(sys.argv[4])) if len(sys.argv) > 4 else None)
handles = meet(endpoint.handle)
service.keeper.open(1, handles)
group = endpoint.make_group("all", 1, handles, 60.0)
say("MET")
if os.environ.get("SLEEPS"):
    os.kill(os.getpid(), signal.SIGSTOP)
    say("AWAKE")
    until((DIRECTORY / "over").exists)  # works on, or so it thinks; what ends it comes from the links' thread
    say("WELL")
epoch, members, ranks, _ = service.keeper.agree(b"", 60.0)
say(f"AGREED {epoch} {ranks}")
until((DIRECTORY / "over").exists)
service.close()
endpoint.close()
