"""What two real ranks do when one of them hangs, or cannot write: run by test_hung_rank.py."""

import os
import signal
import sys

import torch
import torch.distributed as dist
from rank_job import meet, own_rank, result, told

import datastates

RANK = own_rank()


def state(step: int) -> dict[str, torch.Tensor]:
    return {"values": torch.full((1000,), float(step))}


def hang(directory: str) -> None:
    """Rank 1 stops, as SIGSTOP stops it, before the second checkpoint; it is continued by the test."""
    checkpoints = datastates.Checkpointer(directory, commit_timeout_s=3)
    checkpoints.checkpoint(0, state(0)).durable.result(60)
    dist.barrier()
    if RANK == 1:
        result("pid", os.getpid())
        os.kill(os.getpid(), signal.SIGSTOP)
    taken = checkpoints.checkpoint(1, state(1))
    result("outcome", [told(lambda: taken.durable.result(60)), checkpoints.steps()])
    checkpoints.close()
    os._exit(0)  # what the process group does about a peer that hung is not our subject


def refuse(directory: str) -> None:
    """Rank 0 cannot make the directory."""
    result("outcome", told(lambda: datastates.Checkpointer(directory, commit_timeout_s=20)))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    scenario, store, directory = sys.argv[1:]
    meet(store)
    globals()[scenario](directory)


if __name__ == "__main__":
    main()
