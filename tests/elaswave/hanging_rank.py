"""A rank of backend "elastic" for a test of hangs: rank 1 hangs in step 3, the others recover and finish."""

import os
import threading

import torch
import torch.distributed as dist

import elaswave

NUM_STEPS = 6
run = elaswave.join("elastic")
step = 0
while step < NUM_STEPS:
    try:
        run.progress(step, "begin")
        if run.place.rank == 1 and step == 3:
            threading.Event().wait(600)
        total = torch.ones(10)
        dist.all_reduce(total)
        run.progress(step, "commit")
        step += 1
    except RuntimeError as error:
        if elaswave.lost(error) is None:
            raise
        view = run.recover(str(step).encode())
        os.write(1, f"recovered: lost {view.lost}, payloads {view.payloads}\n".encode())
        step = min(map(int, view.payloads))
os.write(1, f"done {run.place.rank}: {run.num_ranks} ranks, sum {float(total[0])}\n".encode())
run.close()
