"""The training state that every contender saves, and the step that it must not slow down.

A real module with fp32 parameters and a real AdamW with its two moments, most bytes in a few large tensors, most
tensors tiny, and Python state beside them. Shapes: N = tokens per step.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

NUM_BLOCKS = 10
TINY_ELEMENTS = 256
STATE_COPIES = 3
"""A parameter and its two Adam moments."""


class BenchModel(nn.Module):
    """A residual stack of MLPs over an embedding, sized to the byte, plus many one-kilobyte gains."""

    def __init__(self, parameter_bytes: int, num_tiny: int) -> None:
        super().__init__()
        elements = parameter_bytes // 4 - num_tiny * TINY_ELEMENTS
        width = max(16, int(math.sqrt(elements / (8 * (NUM_BLOCKS + 1)))) // 16 * 16)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(NUM_BLOCKS))
        used = sum(parameter.numel() for parameter in self.blocks.parameters())
        self.embedding = nn.Embedding(max(1, (elements - used) // width), width)
        self.gains = nn.ParameterList(nn.Parameter(torch.ones(TINY_ELEMENTS)) for _ in range(num_tiny))

    def forward(self, tokens: Tensor) -> Tensor:
        """Scalar loss of ``tokens`` [N]; every parameter receives a gradient."""
        hidden = self.embedding(tokens)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return hidden.square().mean() * torch.cat(list(self.gains)).mean()


class _Block(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class State:
    """Tensors and Python state to be saved, and a private copy to compare a restored state with.

    Not thread-safe: the benchmark's main thread is the training loop.
    """

    def __init__(self) -> None:
        self.progress: dict[str, Any] = {
            "epoch": 3,
            "learning_rate": 1e-4,
            "order": list(range(1000)),
            "names": {"run": "bench", "tags": ["a", "b"]},
        }
        self.tensors = flat_tensors(self.state_dict())
        self.num_bytes = sum(tensor.nbytes for tensor in self.tensors.values())
        self._expected = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        self._expected_progress = copy.deepcopy(self.progress)

    def live(self) -> dict[str, Any]:
        """The state as ours takes it: the objects that train."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The state as peers take it: nested dicts by name, the same tensors that train."""
        raise NotImplementedError

    @torch.no_grad()
    def remember(self) -> None:
        """Keep a private copy of every value, to be what a checkpoint begun now must contain."""
        for name, tensor in self.tensors.items():
            self._expected[name].copy_(tensor)
        self._expected_progress = copy.deepcopy(self.progress)

    @torch.no_grad()
    def mutate(self) -> None:
        """Change every bit pattern in place, and the Python state: what a late copy would pick up."""
        for tensor in self.tensors.values():
            tensor.neg_()
        self.progress["epoch"] += 1
        self.progress["order"].reverse()

    def differences(self, progress: dict[str, Any]) -> list[str]:
        """Names whose bits, or Python values, are not those that ``remember`` kept."""
        wrong = [name for name, tensor in self.tensors.items() if not _same_bits(tensor, self._expected[name])]
        return wrong + (["progress"] if dict(progress) != self._expected_progress else [])


class TinyTensors(State):
    """Nothing but small tensors, where a library's cost per tensor is all there is."""

    def __init__(self, count: int, elements: int, seed: int) -> None:
        torch.manual_seed(seed)
        self._model = {f"tensor.{index}": torch.randn(elements) for index in range(count)}
        super().__init__()

    def live(self) -> dict[str, Any]:
        """A plain dict of tensors."""
        return {"model": self._model, "progress": self.progress}

    state_dict = live


class Workload(State):
    """A module, its optimizer and Python state; a training step of known length."""

    def __init__(self, size_bytes: int, num_tiny: int, seed: int, fused: bool = False) -> None:
        torch.manual_seed(seed)
        self.model = BenchModel(size_bytes // STATE_COPIES, num_tiny)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=fused)
        self.tokens = torch.zeros(16, dtype=torch.int64)
        self.forward_backward()
        self.optimizer.step()
        super().__init__()

    def live(self) -> dict[str, Any]:
        """The module and the optimizer themselves: what an optimizer writes may be copied lazily."""
        return {"model": self.model, "optimizer": self.optimizer, "progress": self.progress}

    def state_dict(self) -> dict[str, Any]:
        """Parameters and moments under the parameters' names."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        moments = {names[id(parameter)]: dict(slots) for parameter, slots in self.optimizer.state.items()}
        return {"model": self.model.state_dict(), "optimizer": moments, "progress": self.progress}

    def calibrate(self, step_s: float, step: Callable[[], float] | None = None, samples: int = 3) -> float:
        """Choose the tokens per step so that ``step`` takes at least ``step_s``; returns what it takes.

        ``step`` returns its own seconds; without it, a forward/backward is meant. The least of ``samples`` counts: a
        busy moment must not pass for a long step.
        """
        num_tokens = len(self.tokens)
        while (taken_s := min((step or self.forward_backward)() for _ in range(samples))) < step_s:
            # A little more than needed: it need not be met twice. Short steps understate the cost of a token.
            num_tokens = max(num_tokens + 8, math.ceil(num_tokens * min(4.0, 1.05 * step_s / taken_s)))
            self.tokens = torch.randint(self.model.embedding.num_embeddings, (num_tokens,))
        return taken_s

    def forward_backward(self) -> float:
        """One real forward/backward; returns its seconds."""
        start_s = time.perf_counter()
        self.model.zero_grad(set_to_none=False)
        self.model(self.tokens).backward()
        return time.perf_counter() - start_s


def flat_tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """All tensors of a nested dict by dotted name."""
    return dict(_flatten(state))


def _flatten(state: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, Tensor):
            yield f"{prefix}{key}", value


def _same_bits(left: Tensor, right: Tensor) -> bool:
    # Compared as integers: as floats a NaN equals nothing and 0.0 equals -0.0.
    return torch.equal(left.detach().view(torch.int32), right.view(torch.int32))
