"""Small training states for tests, how they are saved and restored, and the comparison that counts: bit for bit."""

import copy
from pathlib import Path
from typing import Any

import torch

from datastates import Checkpointer

State = dict[str, Any]


def small_model(seed: int = 0) -> torch.nn.Module:
    """Two linear layers around a batch norm: parameters, buffers that forward changes, an integer buffer."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.ReLU(), torch.nn.Linear(5, 3))


def train_step(model: torch.nn.Module, *optimizers: torch.optim.Optimizer, seed: int = 1) -> float:
    """One forward, backward and step on data that depends on ``seed`` alone; returns the loss."""
    batch = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
    loss = model(batch).square().mean()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def bits(tensor: torch.Tensor) -> bytes:
    """The bytes of the values in row-major order; unlike ``==``, it tells -0.0 from 0.0 and sees equal NaNs."""
    host = tensor.detach().cpu().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return host.reshape(-1).view(torch.uint8).numpy().tobytes() if host.numel() else b""


def assert_same_bits(got: torch.Tensor, expected: torch.Tensor, name: str = "tensor") -> None:
    """Fail unless shape, dtype and every bit agree."""
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype), name
    assert bits(got) == bits(expected), f"{name}: {got} is not {expected}"


def trained(seed: int = 1) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model and its optimizer after one step."""
    model = small_model(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train_step(model, optimizer)
    return model, optimizer


class Tied(torch.nn.Module):
    """An embedding and a head; tied: with one weight."""

    def __init__(self, seed: int, tie: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = torch.nn.Embedding(7, 3)
        self.head = torch.nn.Linear(3, 7, bias=False)
        if tie:
            self.head.weight = self.embedding.weight


def make_state(seed: int) -> State:
    model = small_model(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return {"model": model, "optimizer": optimizer, "progress": {"epoch": seed, "best": torch.tensor(float(seed))}}


def train(state: State, seed: int = 1) -> None:
    train_step(state["model"], state["optimizer"], seed=seed)
    state["progress"]["epoch"] += 1


def snapshot(state: State) -> dict[str, Any]:
    """A copy of everything in a state, by name."""
    found: dict[str, Any] = {f"model.{k}": v.clone() for k, v in state["model"].state_dict().items()}
    for name, parameter in state["model"].named_parameters():
        for key, value in state["optimizer"].state.get(parameter, {}).items():
            found[f"optimizer.{name}.{key}"] = value.clone()
    found["lr"] = state["optimizer"].param_groups[0]["lr"]
    return {**found, "progress": copy.deepcopy(state["progress"])}


def assert_equal(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(got) == set(expected)
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert_same_bits(got[name], value, name)
        elif isinstance(value, dict):
            assert_equal(got[name], value)
        else:
            assert got[name] == value, name


def save(directory: Path, state: State, steps: range, **options: Any) -> dict[int, dict[str, Any]]:
    """A checkpoint after every step of training; what the state was at each."""
    content = {}
    with Checkpointer(directory, keep_last=None, **options) as checkpoints:
        for step in steps:
            train(state, seed=step)
            content[step] = snapshot(state)
            checkpoints.checkpoint(step, state).durable.result(60)
    return content


def restore(directory: Path, state: State, **options: Any) -> int:
    with Checkpointer(directory) as checkpoints:
        return checkpoints.restore(state, **options)
