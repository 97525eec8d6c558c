"""Modules: parameters, buffers and extra state; names without what wrappers put into them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from conformance import ProviderConformance
from training import assert_same_bits, small_model, train_step

import datastates
from datastates.directory import read_manifest


class Counting(torch.nn.Module):
    """Has extra state, a persistent and a transient buffer, a frozen parameter and one in half precision."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.inner = small_model(seed)
        self.frozen = torch.nn.Parameter(torch.randn(3, generator=generator), requires_grad=False)
        self.low = torch.nn.Parameter(torch.randn(2, 2, generator=generator).bfloat16())
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)
        self.calls: dict[str, Any] = {"forward": seed, "last": (None,)}

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        self.calls["forward"] += 1
        return self.inner(batch) * self.low.float().sum()

    def get_extra_state(self) -> Any:
        return self.calls

    def set_extra_state(self, state: Any) -> None:
        self.calls = state


def train(model: torch.nn.Module) -> None:
    train_step(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
                parameter.grad = None


class TestModule(ProviderConformance):
    def make(self, seed: int) -> dict[str, Any]:
        return {"model": small_model(seed)}

    def change(self, state: dict[str, Any]) -> None:
        train(state["model"])

    def content(self, state: dict[str, Any]) -> Any:
        return dict(state["model"].state_dict(keep_vars=True))


class TestModuleWithExtraState(ProviderConformance):
    def make(self, seed: int) -> dict[str, Any]:
        return {"nets": {"counting": Counting(seed)}}

    def change(self, state: dict[str, Any]) -> None:
        train(state["nets"]["counting"])

    def content(self, state: dict[str, Any]) -> Any:
        return dict(state["nets"]["counting"].state_dict(keep_vars=True))


def test_a_misfit_is_refused_in_a_module_with_extra_state_too(tmp_path: Path) -> None:
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, {"model": Counting(1)})
    other = Counting(2)
    other.low = torch.nn.Parameter(torch.ones(5))
    with (
        datastates.Checkpointer(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=r"model\.low is float32\[5\] in the live state but bfloat16\[2, 2\]"),
    ):
        checkpoints.restore({"model": other})
    assert torch.equal(other.low, torch.ones(5))


def test_spectral_norm_resumes_bit_for_bit(tmp_path: Path) -> None:
    def make(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        return torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(6, 4))

    saved, fresh = make(1), make(2)
    train(saved)
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, {"model": saved})
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.restore({"model": fresh})
    train(saved)
    train(fresh)
    for name, tensor in saved.state_dict().items():
        assert_same_bits(fresh.state_dict()[name], tensor, name)


def test_a_transient_buffer_is_not_stored(tmp_path: Path) -> None:
    with datastates.Checkpointer(tmp_path) as checkpoints:
        handle = checkpoints.checkpoint(0, {"model": Counting(1)})
        names = read_manifest(handle.durable.result(60)).tensors
    assert "model.seen" in names
    assert "model.scratch" not in names


def add_adapter(model: torch.nn.Module) -> None:
    model.get_submodule("0").add_module("adapter", torch.nn.Linear(2, 2))


def add_buffer(model: torch.nn.Module) -> None:
    model.get_submodule("0").register_buffer("mask", torch.ones(3))


def rename_parameter(model: torch.nn.Module) -> None:
    layer = model.get_submodule("0")
    layer.register_parameter("scale", layer._parameters.pop("weight"))
    layer.register_parameter("bias", layer._parameters.pop("bias"))


def prune_first(model: torch.nn.Module) -> None:
    torch.nn.utils.prune.l1_unstructured(model.get_submodule("0"), "weight", 0.5)


@pytest.mark.parametrize("change", [add_adapter, add_buffer, rename_parameter, prune_first])
def test_what_a_leaf_has_been_given_since_the_last_checkpoint_is_in_the_next(tmp_path: Path, change: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, {"model": model})
        change(model)
        handle = checkpoints.checkpoint(1, {"model": model})
        stored = read_manifest(handle.durable.result(60)).tensors
    assert set(stored) == {f"model.{name}" for name in model.state_dict()}
