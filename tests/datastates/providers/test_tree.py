"""Plain Python values and tensors by themselves."""

import collections
import datetime
import enum
import pathlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conformance import ProviderConformance, assert_same
from safetensors.numpy import load_file

import datastates


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class TestTree(ProviderConformance):
    def make(self, seed: int) -> dict[str, Any]:
        nested = {"list": [randn(seed, 2), {"deep": randn(seed, 3, 2)}], "tuple": (randn(seed, 1), seed)}
        return {"progress": {"epoch": seed, "name": f"run-{seed}", "best": (0.5, None), "nested": nested}}

    def change(self, state: dict[str, Any]) -> None:
        progress = state["progress"]
        progress["epoch"] += 1
        progress["losses"] = [*progress.get("losses", []), float("inf")]
        progress["nested"]["list"][0].add_(1)
        progress["nested"]["list"][1]["deep"].mul_(2)
        progress["nested"]["tuple"][0].sub_(1)

    def content(self, state: dict[str, Any]) -> Any:
        return state["progress"]


class Mode(str, enum.Enum):  # noqa: UP042  (the older spelling is what users have)
    TRAIN = "train"
    TEST = "test"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class TestEnumerations(ProviderConformance):
    """Where the live state has a member, its class gives the stored one back."""

    def make(self, seed: int) -> dict[str, Any]:
        live = [Level.HIGH, Mode.TEST] if seed == 1 else [Level.LOW, Mode.TRAIN]
        return {"level": live[0], "run": {"mode": live[1], "past": [live[0], (live[1],)], "n": seed}}

    def change(self, state: dict[str, Any]) -> None:
        state["run"]["n"] += 1

    def content(self, state: dict[str, Any]) -> Any:
        return [state["level"], state["run"]]


class TestArrays(ProviderConformance):
    """Small ones with the Python values, large ones as tensors; in place where the live one fits."""

    def make(self, seed: int) -> dict[str, Any]:
        generator = np.random.default_rng(seed)
        large = generator.standard_normal((300, 300))
        return {"large": large, "pool": {"small": np.arange(seed, seed + 5), "more": [large.astype(np.float32).T]}}

    def change(self, state: dict[str, Any]) -> None:
        state["large"] *= 0.5
        state["pool"]["small"] += 1
        state["pool"]["more"][0] *= 2

    def content(self, state: dict[str, Any]) -> Any:
        return [state["large"], state["pool"]]

    def test_it_is_in_place(self, saved: tuple[Path, Any]) -> None:
        state = self.make(seed=2)
        before = [state["large"], state["pool"]["small"], state["pool"]["more"][0]]
        self.restore(saved[0], state)
        after = [state["large"], state["pool"]["small"], state["pool"]["more"][0]]
        assert all(now is then for now, then in zip(after, before, strict=True))

    def test_stock_readers_find_the_large_ones(self, saved: tuple[Path, Any]) -> None:
        stored = datastates.open_checkpoint(saved[0]).path / "rank-00000.safetensors"
        assert set(load_file(stored)) == {"large", "pool.more.0"}


class TestImmutableValues(ProviderConformance):
    """They are replaced in the state that holds them, at any depth."""

    def make(self, seed: int) -> dict[str, Any]:
        return {"step": seed, "run": {"lr": seed / 7, "tag": f"t{seed}", "shape": (seed,), "model": torch.nn.Module()}}

    def change(self, state: dict[str, Any]) -> None:
        state["step"] += 1
        state["run"]["lr"] *= 2

    def content(self, state: dict[str, Any]) -> Any:
        return [state["step"], {k: v for k, v in state["run"].items() if k != "model"}]


@pytest.mark.parametrize(
    "value",
    [
        datetime.datetime(2026, 1, 2),
        pathlib.PurePosixPath("a/b"),
        collections.deque([1], maxlen=2),
        frozenset({1}),
        bytearray(b"ab"),
        torch.bfloat16,
        torch.device("cpu"),
        collections.Counter("aa"),
        np.float32(1.5),
        np.arange(3),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("nested", [False, True])
def test_every_type_of_typed_json_may_stand_anywhere(tmp_path: Path, value: Any, nested: bool) -> None:
    state: dict[str, Any] = {"progress": {"x": value}} if nested else {"x": value}
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, state)
    fresh: dict[str, Any] = {"progress": {"x": None}} if nested else {"x": None}
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.restore(fresh)
    found = fresh["progress"]["x"] if nested else fresh["x"]
    assert type(found) is type(value)
    assert np.array_equal(found, value) if isinstance(value, np.ndarray) else found == value


def test_tensors_that_the_live_value_lacks_or_has_otherwise_are_loaded_afresh(tmp_path: Path) -> None:
    saved = {"a": [torch.arange(3), torch.arange(4.0)], "b": {"c": torch.ones(2, 2)}, "empty": torch.zeros(0, 3)}
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, {"tree": saved})
    state: dict[str, Any] = {"tree": {"a": [torch.zeros(7)], "gone": 1}}
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.restore(state)
    assert_same(state["tree"], saved)


def test_one_tensor_in_two_places_is_stored_once_and_comes_back_in_both(tmp_path: Path) -> None:
    shared = torch.arange(5.0)
    with datastates.Checkpointer(tmp_path) as checkpoints:
        handle = checkpoints.checkpoint(0, {"a": {"x": shared, "again": shared}, "b": {"y": shared}})
        manifest = datastates.directory.read_manifest(handle.durable.result(60))
    assert manifest.data_bytes == shared.nbytes
    assert dict(manifest.aliases) == {"a.again": "a.x", "b.y": "a.x"}
    state: dict[str, Any] = {"a": {"x": torch.zeros(5)}, "b": {}}
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.restore(state)
    for found in (state["a"]["x"], state["a"]["again"], state["b"]["y"]):
        assert torch.equal(found, shared)


def test_a_pickle_comes_back_only_if_it_is_trusted(tmp_path: Path) -> None:
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, {"odd": datastates.pickled(range(3)), "t": torch.ones(2)})
    state: dict[str, Any] = {"odd": None, "t": torch.zeros(2)}
    with datastates.Checkpointer(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match="allow_pickle=True"):
            checkpoints.restore(state)
        assert torch.equal(state["t"], torch.zeros(2)), "a refusal changes nothing"
        checkpoints.restore(state, allow_pickle=True)
    assert state["odd"] == range(3)
    assert torch.equal(state["t"], torch.ones(2))


def test_a_dict_with_a_pickle_inside_is_one_value_and_can_be_saved_again(tmp_path: Path) -> None:
    live: dict[str, Any] = {"config": {"odd": datastates.pickled(range(3)), "plain": 1}}
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, live).durable.result(60)
        assert list(datastates.open_checkpoint(tmp_path).encoded_python()) == ["config"]
        live["config"]["odd"].value = range(5)
        live["config"]["plain"] = 2
        checkpoints.restore(live, allow_pickle=True)
        assert (live["config"]["odd"].value, live["config"]["plain"]) == (range(3), 1)
        checkpoints.checkpoint(1, live).durable.result(60)
    assert datastates.open_checkpoint(tmp_path).python(allow_pickle=True) == {"config": {"odd": range(3), "plain": 1}}


def test_none_is_a_value_like_others(tmp_path: Path) -> None:
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, {"best": None, "run": {"note": None}, "t": torch.ones(1)}).durable.result(60)
        live = {"best": 0.5, "run": {"note": "x"}, "t": torch.zeros(1)}
        checkpoints.restore(live)
    assert (live["best"], live["run"]) == (None, {"note": None})


@pytest.mark.parametrize("kind", ["value", "scheduler", "optimizer", "rng", "generator", "chunked"])
def test_what_the_checkpoint_lacks_is_named_whatever_it_is(tmp_path: Path, kind: str) -> None:
    class Foreign(datastates.ChunkedState):
        def sizes(self) -> Any:
            return {}

        def chunks(self) -> Any:
            return []

        def load(self, chunks: Any) -> None:
            raise AssertionError("nothing is stored")

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    extra: dict[str, Any] = {
        "value": 3,
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2),
        "optimizer": optimizer,
        "rng": datastates.rng_state(),
        "generator": torch.Generator(),
        "chunked": Foreign(),
    }
    live = {"t": torch.zeros(2), "extra": extra[kind]}
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, {"t": torch.ones(2)}).durable.result(60)
        with pytest.raises(ValueError, match="not in the checkpoint: extra"):
            checkpoints.restore(live)
        assert torch.equal(live["t"], torch.zeros(2))
        assert checkpoints.restore(live, strict=False) == 1
    assert torch.equal(live["t"], torch.ones(2))
