"""A small model under accelerate: ``accelerate_job.py DIRECTORY`` is one process of those that train it.

Tests of one process import it, too.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rank_job import own_rank, result
from training import bits, small_model

import datastates


class Loop:
    """Eight batches, accumulated in pairs."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed + own_rank())  # each process has its own batches
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = small_model(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        self.model, self.optimizer, self.scheduler = self.accelerator.prepare(model, optimizer, scheduler)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "rng": datastates.rng_state(),
        }

    def step(self) -> None:
        for _ in range(2):
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward(self.model(torch.randn(4, 6)).square().mean())
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()


def whole_and_resumed(directory: Path) -> tuple[Loop, Loop]:
    """A loop of four steps, and another that goes on from the first one's second."""
    whole = Loop(seed=1)
    with datastates.Checkpointer(directory, verify_immutability="full", on_failure="raise") as checkpoints:
        for step in range(4):
            whole.step()
            if step < 2:
                checkpoints.checkpoint(step, whole.state())
    resumed = Loop(seed=2)
    with datastates.Checkpointer(directory) as checkpoints:
        assert checkpoints.restore(resumed.state()) == 2
    resumed.step()
    resumed.step()
    return whole, resumed


def main() -> None:
    torch.set_num_threads(1)
    whole, resumed = whole_and_resumed(Path(sys.argv[1]))
    wanted = whole.model.state_dict()
    different = [name for name, value in resumed.model.state_dict().items() if bits(value) != bits(wanted[name])]
    result("processes", whole.accelerator.num_processes)
    result("different", different)
    result("rates", [resumed.scheduler.get_last_lr(), whole.scheduler.get_last_lr()])
    whole.accelerator.end_training()


if __name__ == "__main__":
    main()
