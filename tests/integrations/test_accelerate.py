"""accelerate: what Accelerator.prepare returns goes into the state as it is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from training import assert_same_bits, small_model

import datastates

import _elastates


@pytest.fixture(autouse=True)
def no_state_outlives_its_test() -> Iterator[None]:
    yield
    _elastates.clear_fault()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Loop:
    """Eight batches, accumulated in pairs."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
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


def test_prepared_objects_resume_bit_for_bit(tmp_path: Path) -> None:
    whole = Loop(seed=1)
    with datastates.Checkpointer(tmp_path, verify_immutability="full", on_failure="raise") as checkpoints:
        for step in range(4):
            whole.step()
            if step < 2:
                checkpoints.checkpoint(step, whole.state())
    resumed = Loop(seed=2)
    with datastates.Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.restore(resumed.state()) == 2
    resumed.step()
    resumed.step()
    for name, value in whole.model.state_dict().items():
        assert_same_bits(resumed.model.state_dict()[name], value, name)
    assert resumed.scheduler.get_last_lr() == whole.scheduler.get_last_lr()


def test_the_gate_knows_the_optimizer_inside_the_wrapper(tmp_path: Path) -> None:
    """torch's hook names the optimizer that steps, which is not the one in the state."""
    model = torch.nn.Linear(1000, 1000)
    optimizer = Accelerator(cpu=True).prepare(torch.optim.AdamW(model.parameters()))
    model(torch.ones(1, 1000)).sum().backward()
    optimizer.step()
    with datastates.Checkpointer(tmp_path, arena_mb=1, chunk_bytes=65536) as checkpoints:
        _elastates.set_fault("write", times=2**31 - 1, hold=True)
        taken = checkpoints.checkpoint(0, {"optimizer": optimizer})
        assert taken.groups_written_by(optimizer.optimizer) == {1}
        _elastates.clear_fault()
        optimizer.step()
        assert taken.durable.result(60).name == "step-00000000"
