"""A checkpoint with everything in it that formats trip over."""

from pathlib import Path
from typing import Any

import pytest
import torch
from training import Tied, trained

from datastates import Checkpointer, rng_state


def make_state(seed: int = 1) -> dict[str, Any]:
    """Modules, one with tied weights; an optimizer, a scheduler, generators, tensors of odd types, plain values."""
    model, optimizer = trained(seed)
    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 10),
        "nets": {"tied": Tied(seed)},
        "rng": rng_state(),
        "extra": {"half": torch.randn(3, 2).bfloat16() * seed, "empty": torch.zeros(0, 4), "one": torch.tensor(7)},
        "table": torch.arange(40 * 30.0).reshape(40, 30) * seed,
        "progress": {"epoch": seed, "order": (1, 2, seed), "best": float("inf")},
    }


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A directory with the checkpoint of step 4, and the state that is in it."""
    state = make_state()
    with Checkpointer(tmp_path / "run") as checkpoints:
        checkpoints.checkpoint(4, state, metadata={"loss": 0.25}).durable.result(60)
    return tmp_path / "run", state
