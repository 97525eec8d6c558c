"""Two ranks; rank 1 begins its checkpoint only some time after rank 0 has begun its own."""

import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

import datastates
from datastates import sight

LATE_S = 0.3

dist.init_process_group("gloo", timeout=timedelta(seconds=60))
rank = dist.get_rank()
torch.manual_seed(0)
model = torch.nn.Linear(16, 16)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
state = {"model": model, "optimizer": optimizer}
model(torch.ones(1, 16)).sum().backward()

with sight.trace(sys.argv[1] + ".json"), datastates.Checkpointer(sys.argv[1]) as checkpoints:
    checkpoints.checkpoint(0, state).durable.result(60)
    dist.barrier()
    store = dist.distributed_c10d._get_default_store()
    if rank == 1:
        store.wait(["rank 0 has begun"], timedelta(seconds=60))
        time.sleep(LATE_S)  # this is the lateness
    checkpoints.checkpoint(1, state)
    if rank == 0:
        store.set("rank 0 has begun", "")
    optimizer.step()
    report = checkpoints.stall_report()
    if rank == 0:
        share = report.by_step()[1][0]
        print(f"RESULT {share.cause.value}:{share.rank} {share.seconds} {report.waits[-1]}", flush=True)
dist.destroy_process_group()
