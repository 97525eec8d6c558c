"""torch's GradScaler: the scale, and how many steps it has lasted."""

from pathlib import Path
from typing import Any

import torch
from conformance import ProviderConformance
from training import small_model

import datastates


class TestGradScaler(ProviderConformance):
    """Steps whose gradients overflow now and then."""

    device = "cpu"

    def make(self, seed: int) -> dict[str, Any]:
        model = small_model(seed).to(self.device)
        scaler = torch.amp.GradScaler(self.device, init_scale=2.0**seed, growth_interval=2)
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.01), "scaler": scaler}

    def change(self, state: dict[str, Any]) -> None:
        scaler, optimizer = state["scaler"], state["optimizer"]
        for overflow in (False, False, True, False):
            optimizer.zero_grad()
            loss = state["model"](torch.ones(4, 6, device=self.device)).square().mean()
            scaler.scale(loss * (float("inf") if overflow else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()

    def content(self, state: dict[str, Any]) -> Any:
        return [list(state["model"].parameters()), state["scaler"].state_dict()]


def test_a_disabled_scaler_has_nothing_and_takes_nothing(tmp_path: Path) -> None:
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, {"scaler": torch.amp.GradScaler("cpu", enabled=False)})
        assert checkpoints.restore({"scaler": torch.amp.GradScaler("cpu", enabled=False)}) == 1
