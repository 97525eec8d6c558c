"""Storage that stands still until told otherwise: how tests make training overtake a checkpoint, for certain.

While writes are held, an arena smaller than the state can take no more bytes, so a copy cannot become complete. No test
needs to sleep, or to hope that a disk is slow.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from datastates.handle import Checkpoint

import _elastates

SMALL_ARENA: dict[str, Any] = {"arena_mb": 1, "chunk_bytes": 64 << 10}
"""Options of a checkpointer whose arena takes about 1 MB, in blocks of 64 KiB."""


class HeldStorage:
    """Holds writes between :meth:`hold` and :meth:`release`, or the first gate that somebody waits at.

    Attributes:
        gates: (step of the checkpoint waited for, whether it had been copied already) at every gate, in order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gates: list[tuple[int, bool]] = []
        self._opens_at_gate = False
        for name in ("wait_groups_copied", "wait_copied"):
            monkeypatch.setattr(Checkpoint, name, self._noting(getattr(Checkpoint, name)))

    def hold(self, *, opens_at_gate: bool = True) -> None:
        """Hold every write from now on.

        Args:
            opens_at_gate: go on as soon as a gate is reached; otherwise only :meth:`release` helps.
        """
        self._opens_at_gate = opens_at_gate
        _elastates.set_fault("write", times=2**31 - 1, hold=True)

    def release(self) -> None:
        """Let held writes, and all later ones, go on. Idempotent."""
        _elastates.clear_fault()

    def _noting(self, wait: Any) -> Any:
        def wait_and_note(checkpoint: Checkpoint, *args: Any) -> None:
            self.gates.append((checkpoint.step, checkpoint.safe_to_mutate.done()))
            if self._opens_at_gate:
                self.release()
            wait(checkpoint, *args)

        return wait_and_note


def stored_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint that one process wrote, as plain safetensors reads it."""
    found = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  (no mapping)
    return found


def cloned(named: Iterable[tuple[str, torch.Tensor]], prefix: str) -> dict[str, torch.Tensor]:
    """Copies of the tensors, under ``prefix.name``."""
    return {f"{prefix}.{name}": tensor.detach().clone() for name, tensor in named}


def cloned_module(module: torch.nn.Module, prefix: str = "model") -> dict[str, torch.Tensor]:
    """Copies of a module's parameters and buffers, under the names of a checkpoint."""
    return cloned(((k, v) for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)), prefix)


def cloned_optimizer(
    optimizer: torch.optim.Optimizer, module: torch.nn.Module, prefix: str = "optimizer"
) -> dict[str, torch.Tensor]:
    """Copies of an optimizer's state tensors, under the names of a checkpoint."""
    names: dict[object, str] = {parameter: name for name, parameter in module.named_parameters()}
    items = ((names[p], key, item) for p, state in optimizer.state.items() for key, item in state.items())
    return cloned(((f"{n}.{key}", i) for n, key, i in items if isinstance(i, torch.Tensor)), f"{prefix}.state")


def wide_model(seed: int = 0, width: int = 384) -> torch.nn.Sequential:
    """1.2 MB of parameters: more than the small arena takes."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Tanh(), torch.nn.Linear(width, width))


def backward(model: torch.nn.Module, seed: int = 1) -> torch.Tensor:
    """Gradients of one batch; returns the loss."""
    first = next(p for p in model.parameters() if p.dim() == 2)
    batch = torch.randn(2, first.shape[1], generator=torch.Generator().manual_seed(seed))
    loss = model(batch).square().mean()
    loss.backward()
    return loss.detach()


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int = 1) -> None:
    """One step on that batch."""
    optimizer.zero_grad()
    backward(model, seed)
    optimizer.step()


def assert_stored(checkpoint: Checkpoint, expected: Mapping[str, torch.Tensor]) -> None:
    """Exactly these tensors, bit for bit, as an independent reader sees them."""
    found = stored_tensors(checkpoint.durable.result(60))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert found[name].flatten().view(torch.uint8).equal(tensor.flatten().view(torch.uint8)), name
