"""Objects with state_dict() and load_state_dict(): schedulers, and what users write themselves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import ProviderConformance

import datastates


class TestScheduler(ProviderConformance):
    def make(self, seed: int) -> dict[str, Any]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1 * seed)
        return {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)}

    def change(self, state: dict[str, Any]) -> None:
        state["scheduler"].optimizer.step()
        state["scheduler"].step()

    def content(self, state: dict[str, Any]) -> Any:
        return {k: v for k, v in state["scheduler"].state_dict().items() if not k.startswith("_")}


class Sampler:
    """A data position: counts, and a permutation that it makes anew for every ``state_dict()``."""

    def __init__(self, seed: int) -> None:
        self.position = seed
        self.order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "order": self.order.clone(), "nested": [{"empty": torch.zeros(0)}]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position, self.order = state["position"], state["order"].clone()


class TestSampler(ProviderConformance):
    restores_in_place = False  # its state_dict() hands out copies

    def make(self, seed: int) -> dict[str, Any]:
        return {"data": {"train": Sampler(seed), "steps": seed}}

    def change(self, state: dict[str, Any]) -> None:
        sampler = state["data"]["train"]
        sampler.position += 1
        sampler.order = sampler.order.roll(1)
        state["data"]["steps"] += 1

    def content(self, state: dict[str, Any]) -> Any:
        return [state["data"]["train"].state_dict(), state["data"]["steps"]]


class Asked(Sampler):
    """Counts how often it is asked."""

    asked = 0

    def state_dict(self) -> dict[str, Any]:
        self.asked += 1
        return {"position": self.position} if self.position < 5 else super().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


@pytest.mark.parametrize(("position", "asked"), [(3, 0), (7, 1)])
def test_a_restore_asks_for_the_live_state_only_where_tensors_are_loaded(
    tmp_path: Path, position: int, asked: int
) -> None:
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, {"data": Asked(position)})
        live = Asked(8)
        checkpoints.restore({"data": live})
    assert (live.position, live.asked) == (position, asked)
