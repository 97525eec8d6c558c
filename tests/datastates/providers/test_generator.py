"""Generators that are objects."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conformance import ProviderConformance, assert_same

import datastates


class GeneratorConformance(ProviderConformance):
    restores_in_place = False  # what is compared are draws

    def draw(self, generator: Any) -> Any:
        return [generator.standard_normal(), generator.random()]

    def change(self, state: dict[str, Any]) -> None:
        self.draw(state["generator"])
        self.draw(state["nested"]["again"])

    def content(self, state: dict[str, Any]) -> Any:
        """What the next draws will be; draws nothing."""
        drawn = []
        for generator in (state["generator"], state["nested"]["again"]):
            kept = self.get(generator)
            drawn.append(self.draw(generator))
            self.set(generator, kept)
        return drawn

    def make(self, seed: int) -> dict[str, Any]:
        return {"generator": self.new(seed), "nested": {"again": self.new(seed + 10), "note": "plain"}}

    def new(self, seed: int) -> Any:
        raise NotImplementedError

    def get(self, generator: Any) -> Any:
        return generator.bit_generator.state

    def set(self, generator: Any, state: Any) -> None:
        generator.bit_generator.state = state


class TestTorch(GeneratorConformance):
    def new(self, seed: int) -> Any:
        return torch.Generator().manual_seed(seed)

    def draw(self, generator: Any) -> Any:
        return torch.randn(3, generator=generator)

    def get(self, generator: Any) -> Any:
        return generator.get_state()

    def set(self, generator: Any, state: Any) -> None:
        generator.set_state(state)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestTorchOnDevice(TestTorch):
    def new(self, seed: int) -> Any:
        return torch.Generator("cuda").manual_seed(seed)

    def draw(self, generator: Any) -> Any:
        return torch.randn(3, generator=generator, device="cuda")


class NumpyConformance(GeneratorConformance):
    bits: Any

    def new(self, seed: int) -> Any:
        return np.random.Generator(self.bits(seed))


for _bits in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"):
    globals()[f"Test{_bits}"] = type(f"Test{_bits}", (NumpyConformance,), {"bits": getattr(np.random, _bits)})


class TestLegacyNumpy(GeneratorConformance):
    """Keeps every second normal value for later."""

    def new(self, seed: int) -> Any:
        return np.random.RandomState(seed)

    def change(self, state: dict[str, Any]) -> None:
        state["generator"].standard_normal()

    def get(self, generator: Any) -> Any:
        return generator.get_state()

    def set(self, generator: Any, state: Any) -> None:
        generator.set_state(state)


class TestPython(GeneratorConformance):
    def new(self, seed: int) -> Any:
        return random.Random(seed)

    def draw(self, generator: Any) -> Any:
        return [generator.gauss(0, 1), generator.random()]

    def change(self, state: dict[str, Any]) -> None:
        state["generator"].gauss(0, 1)  # keeps a second value

    def get(self, generator: Any) -> Any:
        return generator.getstate()

    def set(self, generator: Any, state: Any) -> None:
        generator.setstate(state)


def test_a_generator_of_another_kind_is_refused_before_anything_changes(tmp_path: Path) -> None:
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, {"t": torch.ones(2), "g": np.random.default_rng(1)})
        live = {"t": torch.zeros(2), "g": np.random.Generator(np.random.Philox(1))}
        with pytest.raises(ValueError, match="g is a numpy Philox generator, the checkpoint's is a numpy PCG64 one"):
            checkpoints.restore(live)
    assert torch.equal(live["t"], torch.zeros(2))


def test_whoever_holds_the_generator_goes_on_with_it(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    sampler = torch.utils.data.RandomSampler(range(20), generator=generator)
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, {"generator": generator}).durable.result(60)
        expected = [list(sampler), list(sampler)]
        checkpoints.restore({"generator": generator})
    assert_same([list(sampler), list(sampler)], expected)
