"""The job of benchmarks/recovery.py whose ranks hang: steps of nothing, marked and noted."""

import sys
import threading

import elaswave
from elaswave import timeline


def main() -> None:
    run = elaswave.join(backend="gloo")
    stop = threading.Event()
    run.subscribe(lambda event: timeline.note(str(event["event"]), rank=run.place.rank, of=event.get("rank")))
    for step in range(sys.maxsize):
        run.progress(step, "begin")
        stop.wait(0.005)
        run.progress(step, "commit")
        timeline.note("committed", step=step, rank=run.place.rank)


if __name__ == "__main__":
    main()
