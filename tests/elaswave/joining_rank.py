"""A rank for tests of join(): torch, gloo, marks. Prints one JSON line of what it found."""

import json
import os
import sys
import time

import torch
import torch.distributed as dist

import elaswave

run = elaswave.join(backend="gloo")
total = torch.ones(3) * (run.rank + 1)
dist.all_reduce(total)
for step in range(3):
    run.progress(step, "begin")
    run.progress(step, "computed")
    run.progress(step, "commit")

NUM_MARKS = 2000
before_s = time.perf_counter()
for step in range(NUM_MARKS):
    run.progress(step, "begin")
mark_us = (time.perf_counter() - before_s) / NUM_MARKS * 1e6
run.progress(NUM_MARKS, "commit")

found = {
    "launcher": run.place.launcher,
    "rank": run.rank,
    "num_ranks": run.num_ranks,
    "local_rank": run.local_rank,
    "epoch": run.epoch,
    "device": str(run.device),
    "has_agent": run.agent is not None,
    "total": total.tolist(),
    "mark_us": mark_us,
}
with run.paused("talking"):
    os.write(1, (json.dumps(found) + "\n").encode())
try:
    run.group  # noqa: B018 - the property is what is tried
except elaswave.ElasWaveError as error:
    os.write(1, f"{error}\n".encode())
run.close()
run.close()
sys.stdout.flush()
