"""The global random number generators."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conformance import ProviderConformance, assert_same

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


class Drawing:
    """Draws from the global generators while it takes its state back, as data loaders that start workers do."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        random.random()
        np.random.random()
        torch.randn(3)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("order", [("rng", "loader"), ("loader", "rng")])
def test_generators_are_restored_after_everything_that_may_draw_from_them(
    tmp_path: Path, order: tuple[str, str], own: bool
) -> None:
    rng = datastates.rng_state()
    parts = {"rng": datastates.per_rank(rng) if own else rng, "loader": Drawing()}
    state = {key: parts[key] for key in order}
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, state)
        expected = [random.random(), np.random.random(), torch.randn(2)]
        checkpoints.restore(state)
    assert_same([random.random(), np.random.random(), torch.randn(2)], expected)
