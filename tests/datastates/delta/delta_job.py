"""What processes of the delta tests do: ``python delta_job.py SCENARIO ARGUMENTS``; they print ``RESULT name ...``."""

import os
import shutil
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from rank_job import meet, num_ranks, own_rank, result
from torch import nn

import datastates
from datastates.directory import read_manifest

import _elastates

RANK, NUM_RANKS = own_rank(), num_ranks()


# ---- kills


def table_of(step: int) -> torch.Tensor:
    """[1024, 128]: everything from step 0, one row more of each step since."""
    table = torch.randn(1024, 128, generator=torch.Generator().manual_seed(1))
    table[torch.arange(step) * 100] += 1
    return table


def save_and_die(directory: Path, operation: int) -> None:
    checkpoints = datastates.Checkpointer(directory, full_every=8, keep_last=2)
    for step in range(3):
        checkpoints.checkpoint(step, {"table": table_of(step)}).durable.result(60)
    _elastates.die_before(operation)
    checkpoints.checkpoint(3, {"table": table_of(3)}).durable.result(60)
    checkpoints.close()
    os._exit(0)


def die_at_every_operation(directory: str) -> None:
    """[what was wrong afterwards, the step found] for a death before each file operation of the fourth checkpoint."""
    torch.set_num_threads(1)
    found = []
    for operation in range(1, 1000):
        run = Path(directory) / "run"
        child = os.fork()
        if child == 0:
            save_and_die(run, operation)
        _, status = os.waitpid(child, 0)
        state = {"table": torch.empty(1024, 128)}
        with datastates.Checkpointer(run, keep_last=2) as checkpoints:
            step = checkpoints.restore(state) - 1
            same = torch.equal(state["table"], table_of(step))
            checkpoints.checkpoint(step + 1, state).durable.result(60)  # the next writer clears up
        untidy = [path.name for path in run.iterdir() if path.name.startswith((".tmp", ".old"))]
        found.append(["" if same and not untidy else f"operation {operation}: {same}, {untidy}", step])
        shutil.rmtree(run)
        if os.WIFEXITED(status):
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    result("deaths", found)


# ---- several ranks


class Lora(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Linear(1024, 1024)  # 4 MiB: cut into a part for each rank
        self.base.requires_grad_(False)
        self.adapter = nn.Linear(1024, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x).sum() + self.adapter(x).sum()


def train(model: Lora, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(1, 1024)).backward()
    optimizer.step()


def lora(store: str, directory: str) -> None:
    """Deltas on all ranks; one in which one rank alone has changes; one that one rank cannot link; a full one after."""
    meet(store)
    model = Lora()
    optimizer = torch.optim.AdamW(model.adapter.parameters())
    train(model, optimizer)
    own = torch.zeros(40_000)
    state = {"model": model, "optimizer": optimizer, "own": datastates.per_rank({"values": own})}
    files, errors = [], []
    with datastates.Checkpointer(directory, full_every=8, keep_last=None, commit_timeout_s=60) as checkpoints:
        for step in range(6):
            if step == 2:
                own[RANK] += RANK == 1  # nothing else changes, on any rank
            elif step == 3:
                train(model, optimizer)
                if RANK == 2:
                    _elastates.set_fault("link", error=31)
            else:
                train(model, optimizer)
            taken = checkpoints.checkpoint(step, state)
            errors.append(str(taken.durable.exception(60) or ""))
            _elastates.clear_fault()
            if RANK == 0 and not errors[-1]:
                manifest = read_manifest(taken.durable.result())
                files.append([step, [[file.name, list(file.sources)] for file in manifest.files]])
        stats = checkpoints.stats()
    wanted = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for tensor in model.state_dict().values():
        tensor.zero_()
    own.zero_()
    with datastates.Checkpointer(directory) as checkpoints:
        assert checkpoints.restore(state) == 6
    same = all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
    result(
        "done", [errors, files, stats.num_deltas, stats.bytes_written_total, same and own.sum().item() == (RANK == 1)]
    )
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
