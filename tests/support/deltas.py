"""States that change in part, and how checkpoints of them are taken and looked at."""

from pathlib import Path
from typing import Any

import torch

from datastates import Checkpointer, open_checkpoint

ROWS, COLUMNS = 4096, 128  # 2 MiB of float32: a row is 512 bytes
EXTENT_BYTES = 64 << 10
FULL, DELTA = "rank-00000.safetensors", "rank-00000.safetensors.delta"


class Lora(torch.nn.Module):
    """A frozen base and a small adapter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base = torch.nn.Linear(512, 512)
        self.base.requires_grad_(False)
        self.adapter = torch.nn.Linear(512, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x).sum() + self.adapter(x).sum()


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(2, 512)).backward()
    optimizer.step()


def values(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A copy of every tensor, under its stored name."""
    found: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if isinstance(value, torch.nn.Module):
            found |= {f"{key}.{name}": tensor.clone() for name, tensor in value.state_dict().items()}
        elif isinstance(value, torch.Tensor):
            found[key] = value.clone()
    return found


def save(checkpoints: Checkpointer, step: int, state: dict[str, Any]) -> tuple[int, dict[str, torch.Tensor]]:
    """Returns the bytes written, and the state as it is now."""
    before = checkpoints.stats().bytes_written_total
    checkpoints.checkpoint(step, state).durable.result(60)
    return checkpoints.stats().bytes_written_total - before, values(state)


def assert_holds(checkpoint: Path, expected: dict[str, torch.Tensor]) -> None:
    reader = open_checkpoint(checkpoint)
    assert reader.verify() == []
    for name, tensor in expected.items():
        assert torch.equal(reader.read(name), tensor), name


def left(checkpoint: Path) -> set[str]:
    return {path.name for path in checkpoint.iterdir()}
