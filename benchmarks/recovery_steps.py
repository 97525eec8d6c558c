"""The job of benchmarks/recovery.py whose ranks hang: steps of little work and one sum, marked and noted."""

import sys
import threading

import torch
import torch.distributed as dist

import elaswave
from elaswave import timeline


def main() -> None:
    torch.set_num_threads(1)
    run = elaswave.join(backend="elastic")
    run.subscribe(lambda event: timeline.note(f"heard {event['event']}", of=event.get("rank")))
    work = threading.Event()
    step = 0
    while step < sys.maxsize:
        run.progress(step, "begin")
        timeline.note("committed", step=step - 1)  # here, so that a rank that hangs does it inside a step
        try:
            work.wait(0.005)
            dist.all_reduce(torch.ones(1))
        except dist.DistBackendError as error:
            if elaswave.lost(error) is None:
                raise
            run.recover()
            continue
        run.progress(step, "commit")
        step += 1


if __name__ == "__main__":
    main()
