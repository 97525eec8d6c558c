"""The global random number generators."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from conformance import ProviderConformance

import datastates


@pytest.fixture(autouse=True, scope="module")
def _generators_of_other_tests() -> Any:
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(kept[0])
    np.random.set_state(kept[1])
    torch.set_rng_state(kept[2])


class TestRng(ProviderConformance):
    restores_in_place = False  # the generators hand out copies

    def make(self, seed: int) -> dict[str, Any]:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        return {"rng": datastates.rng_state()}

    def change(self, state: dict[str, Any]) -> None:
        random.gauss(0, 1)  # keeps a second value in the generator
        np.random.standard_normal()
        torch.randn(3)

    def content(self, state: dict[str, Any]) -> Any:
        kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
        drawn = [random.gauss(0, 1), random.random(), np.random.standard_normal(), torch.randn(2)]
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])
        return drawn

    def test_a_description_is_the_same_for_equal_objects(self) -> None:
        assert self.describe(self.make(1)) == self.describe(self.make(2)) == [("rng", [], {})]
