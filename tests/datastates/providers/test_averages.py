"""Averages of weights: torch's AveragedModel, a dict of tensors, and an object that keeps lists of them."""

from typing import Any

import torch
from conformance import ProviderConformance
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training import small_model, train_step


class Averages(ProviderConformance):
    """A model in training and an average of it."""

    def average(self, model: torch.nn.Module) -> Any:
        raise NotImplementedError

    def update(self, average: Any, model: torch.nn.Module) -> None:
        average.update_parameters(model)

    def make(self, seed: int) -> dict[str, Any]:
        model = small_model(seed)
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "ema": self.average(model)}

    def change(self, state: dict[str, Any]) -> None:
        train_step(state["model"], state["optimizer"])
        self.update(state["ema"], state["model"])

    def content(self, state: dict[str, Any]) -> Any:
        ema = state["ema"]
        return [
            list(state["model"].parameters()),
            ema if isinstance(ema, dict) else dict(ema.state_dict(keep_vars=True)),
        ]


class TestAveragedModel(Averages):
    def average(self, model: torch.nn.Module) -> Any:
        return AveragedModel(model, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.9))


class TestStochasticWeightAverage(Averages):
    def average(self, model: torch.nn.Module) -> Any:
        return AveragedModel(model)


class TestDictOfTensors(Averages):
    def average(self, model: torch.nn.Module) -> Any:
        return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def update(self, average: Any, model: torch.nn.Module) -> None:
        for name, parameter in model.named_parameters():
            average[name].lerp_(parameter.detach(), 0.1)


class Shadow:
    """Keeps its averages in a list, as several libraries do."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.updates = 0
        self.shadow = [parameter.detach().clone() for parameter in model.parameters()]

    def update_parameters(self, model: torch.nn.Module) -> None:
        self.updates += 1
        for average, parameter in zip(self.shadow, model.parameters(), strict=True):
            average.lerp_(parameter.detach(), 0.1)

    def state_dict(self, keep_vars: bool = False) -> dict[str, Any]:
        return {"decay": 0.9, "updates": self.updates, "shadow": self.shadow, "collected": None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates, self.shadow = state["updates"], state["shadow"]


class TestShadowList(Averages):
    def average(self, model: torch.nn.Module) -> Any:
        return Shadow(model)
