"""Values of several parts, and what becomes of many fragments: few extents, and serialisation beside bulk copies."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import ProviderConformance
from held_storage import SMALL_ARENA, HeldStorage
from training import small_model, train_step

import datastates
from datastates.data_file import SHARED_EXTENT_BYTES
from datastates.providers import base


class Trainer:
    """What a user's training loop is about."""

    def __init__(self, seed: int) -> None:
        self.model = small_model(seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.ema = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.step = seed
        self.curve = {"losses": [0.5 * seed]}
        self.generator = torch.Generator().manual_seed(seed)
        self.cache = object()  # not part of the state


class TrainerProvider(datastates.CompositeProvider):
    """All that it takes."""

    handles = (Trainer,)

    def parts(self, value: Trainer) -> dict[str, Any]:
        names = ("model", "optimizer", "ema", "step", "curve", "generator")
        return {name: getattr(value, name) for name in names}


@pytest.fixture(autouse=True, scope="module")
def _registered() -> Any:
    kept = list(base._registry), dict(base._by_type)
    datastates.register_provider(TrainerProvider())
    yield
    base._registry[:] = kept[0]
    base._by_type.clear()
    base._by_type.update(kept[1])


class TestTrainer(ProviderConformance):
    def make(self, seed: int) -> dict[str, Any]:
        return {"trainer": Trainer(seed), "jobs": {"other": Trainer(seed + 10)}}

    def change(self, state: dict[str, Any]) -> None:
        for trainer in (state["trainer"], state["jobs"]["other"]):
            trainer.curve["losses"].append(train_step(trainer.model, trainer.optimizer, seed=trainer.step))
            trainer.step += 1
            for name, parameter in trainer.model.named_parameters():
                trainer.ema[name].lerp_(parameter.detach(), 0.1)
            torch.randn(3, generator=trainer.generator)

    def content(self, state: dict[str, Any]) -> Any:
        return [
            [
                list(t.model.parameters()),
                [dict(t.optimizer.state.get(p, {})) for p in t.model.parameters()],
                [t.ema, t.step, t.curve],
                t.generator.get_state(),
            ]
            for t in (state["trainer"], state["jobs"]["other"])
        ]

    restores_in_place = False  # a generator hands out copies

    def test_parts_are_stored_as_if_they_stood_in_the_state(self, saved: tuple[Path, Any]) -> None:
        reader = datastates.open_checkpoint(saved[0])
        assert {"trainer.model.0.weight", "trainer.optimizer.state.0.weight.exp_avg"} <= set(reader.names())
        assert {"trainer.step", "jobs.other.curve"} <= set(reader.python())

    def test_the_optimizer_of_the_parts_is_gated(self, storage: HeldStorage, tmp_path: Path) -> None:
        trainer = Trainer(1)
        with datastates.Checkpointer(tmp_path) as checkpoints:
            handle = checkpoints.checkpoint(0, {"trainer": trainer})
            train_step(trainer.model, trainer.optimizer)
            assert storage.gates == [(0, True)] or storage.gates[0][0] == 0
            handle.durable.result(60)


def test_the_whole_of_a_composite_is_nobody_s_own(tmp_path: Path) -> None:
    with datastates.Checkpointer(tmp_path) as checkpoints, pytest.raises(TypeError, match="wrap the parts"):
        checkpoints.checkpoint(0, {"trainer": datastates.per_rank(Trainer(1))})


def test_many_fragments_of_many_kinds_become_few_extents(tmp_path: Path) -> None:
    """5,000 tensors of modules, optimizers and containers: 11 MB in 22 checksummed extents."""
    model = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(600))
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    ema = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    state = {"model": model, "optimizer": optimizer, "more": {"ema": ema, "rng": datastates.rng_state()}}
    with datastates.Checkpointer(tmp_path) as checkpoints:
        manifest = datastates.directory.read_manifest(checkpoints.checkpoint(0, state).durable.result(60))
    (file,) = manifest.files
    assert len(manifest.tensors) == 5 * 1200  # with AdamW's steps
    assert len(file.extent_ends) <= file.size_bytes // SHARED_EXTENT_BYTES + 2  # of 5,000 tensors; blocks cut two


def test_python_values_are_serialised_while_the_bulk_is_still_to_be_copied(
    storage: HeldStorage, tmp_path: Path
) -> None:
    """The arena takes a fifth of the tensor and no write ends, yet the objects file is complete and synced."""
    state = {"bulk": torch.nn.Parameter(torch.zeros(5 << 18)), "words": {f"w{i}": i for i in range(10_000)}}
    state["optimizer"] = torch.optim.SGD([state["bulk"]], lr=0.1)
    with datastates.Checkpointer(tmp_path, **SMALL_ARENA) as checkpoints:
        storage.hold(opens_at_gate=False)
        handle = checkpoints.checkpoint(0, state)
        deadline_s = time.monotonic() + 60
        while not (written := list(tmp_path.glob(".tmp-*/rank-*.objects.json"))) and time.monotonic() < deadline_s:
            assert not handle.written.done()
        assert not handle.safe_to_mutate.done()
        storage.release()
        path = handle.durable.result(60)
    assert (path / written[0].name).stat().st_size > 100_000


class Counter:
    def __init__(self, count: int) -> None:
        self.count = count


def test_the_examples_of_the_documentation_run(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "providers.md").read_text()
    blocks = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "register_provider" in code]
    assert len(blocks) == 2
    with datastates.Checkpointer(tmp_path) as checkpoints:
        names = {"datastates": datastates, "Trainer": Trainer, "Counter": Counter, "checkpoints": checkpoints}
        for block in blocks:
            exec(block, names | {"trainer": Trainer(1), "step": 3})
        checkpoints.checkpoint(4, {"trainer": Trainer(5), "counter": Counter(6)})
        live = {"trainer": Trainer(7), "counter": Counter(8)}
        assert checkpoints.restore(live) == 5
    assert checkpoints.steps() == [3, 4]
    assert (live["trainer"].step, live["counter"].count) == (5, 6)
