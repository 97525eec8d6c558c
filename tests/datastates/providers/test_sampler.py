"""Samplers and data loaders: torch's DistributedSampler, torchdata's stateful loader and sampler."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import ProviderConformance, assert_same
from torch.utils.data import Dataset, DistributedSampler, IterableDataset
from torchdata import nodes
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

import datastates
from datastates.providers import provider_for
from datastates.providers.stateful import StatefulProvider

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata calls it


class TestDistributedSampler(ProviderConformance):
    def make(self, seed: int) -> dict[str, Any]:
        return {"sampler": DistributedSampler(range(40), num_replicas=2, rank=1, seed=seed)}  # type: ignore[arg-type]

    def change(self, state: dict[str, Any]) -> None:
        state["sampler"].set_epoch(state["sampler"].epoch + 1)

    def content(self, state: dict[str, Any]) -> Any:
        return [state["sampler"].epoch, list(state["sampler"])]


class Numbers(Dataset[int]):
    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> int:
        return index * index


class Stream(IterableDataset[int]):
    """Says itself where it is."""

    def __init__(self, begin: int) -> None:
        self.at = begin

    def __iter__(self) -> Iterator[int]:
        while self.at < 60:
            self.at += 1
            yield self.at - 1

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


class LoaderConformance(ProviderConformance):
    """Content is what the loader would give from here on, asked of another loader that takes its state."""

    restores_in_place = False  # the batches are made anew

    def loader(self, seed: int) -> StatefulDataLoader[Any]:
        raise NotImplementedError

    def make(self, seed: int) -> dict[str, Any]:
        return {"data": {"loader": self.loader(seed), "epoch": seed}}

    def change(self, state: dict[str, Any]) -> None:
        """Two more batches, in the same epoch."""
        loader = state["data"]["loader"]
        if getattr(loader, "running", None) is None or loader.next_iter_state is not None:
            loader.running = iter(loader)
        next(loader.running)
        next(loader.running)

    def content(self, state: dict[str, Any]) -> Any:
        fresh = self.loader(7)
        fresh.load_state_dict(copy.deepcopy(state["data"]["loader"].state_dict()))
        return [list(fresh), state["data"]["epoch"]]


class TestMapStyleLoader(LoaderConformance):
    def loader(self, seed: int) -> StatefulDataLoader[Any]:
        generator = torch.Generator().manual_seed(seed)
        return StatefulDataLoader(Numbers(), batch_size=2, shuffle=True, generator=generator)


class TestStreamLoader(LoaderConformance):
    def loader(self, seed: int) -> StatefulDataLoader[Any]:
        return StatefulDataLoader(Stream(seed), batch_size=3)


def test_a_distributed_loader_goes_on_at_the_next_batch(tmp_path: Path) -> None:
    """No conformance class: between load_state_dict() and the next batch, torchdata 0.11 gives a wrong state away."""

    def loader() -> StatefulDataLoader[Any]:
        sampler = StatefulDistributedSampler(Numbers(), num_replicas=2, rank=0, seed=5)
        return StatefulDataLoader(Numbers(), batch_size=2, sampler=sampler)

    first = loader()
    running = iter(first)
    next(running)
    state: dict[str, Any] = {"loader": first}
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, state)
        expected = list(running)
        state["loader"] = loader()
        checkpoints.restore(state)
    assert_same(list(state["loader"]), expected)
    assert len(expected) == 7


def test_a_loader_with_worker_processes_goes_on_at_the_next_batch(tmp_path: Path) -> None:
    def loader() -> StatefulDataLoader[Any]:
        return StatefulDataLoader(Numbers(), 2, num_workers=2, shuffle=True, generator=torch.Generator().manual_seed(3))

    torch.manual_seed(1)
    first = loader()
    running = iter(first)
    for _ in range(4):
        next(running)
    state: dict[str, Any] = {"rng": datastates.rng_state(), "loader": first}
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(4, state)
        checkpoints.wait()
        expected = list(running)
        drawn = torch.randn(3)
        state["loader"] = loader()
        assert checkpoints.restore(state) == 5
    assert_same(list(state["loader"]), expected)
    assert len(expected) == 11
    assert drawn.shape == (3,)


def test_torchdata_s_own_sampler_keeps_its_position_itself() -> None:
    sampler = StatefulDistributedSampler(Numbers(), num_replicas=1, rank=0)
    assert type(provider_for(sampler, "sampler")) is StatefulProvider


@pytest.mark.parametrize("own", [True, False], ids=["own generator", "global generator"])
def test_a_shuffled_epoch_is_resumed_in_its_order(tmp_path: Path, own: bool) -> None:
    def loader() -> StatefulDataLoader[Any]:
        generator = torch.Generator().manual_seed(3) if own else None
        return StatefulDataLoader(Numbers(), batch_size=4, shuffle=True, generator=generator)

    torch.manual_seed(5)
    first = loader()
    running = iter(first)
    next(running)
    state: dict[str, Any] = {"rng": datastates.rng_state(), "loader": first}
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, state).durable.result(60)
        expected = list(running)
        torch.manual_seed(99)
        state["loader"] = loader()
        checkpoints.restore(state)
    assert_same(list(state["loader"]), expected)


def test_a_loader_s_small_tensors_do_not_make_the_state_another_at_every_step(tmp_path: Path) -> None:
    loader = StatefulDataLoader(Numbers(), 2, shuffle=True, generator=torch.Generator())
    state = {"weight": torch.ones(3), "loader": loader}
    with datastates.Checkpointer(tmp_path) as checkpoints:
        for step, _ in zip(range(2), loader, strict=False):
            checkpoints.checkpoint(step, state).durable.result(60)
    assert datastates.open_checkpoint(tmp_path).names() == ["weight"]


class Shuffled(nodes.BaseNode[int]):
    """Keeps its order as a tensor, a large one."""

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        super().reset(initial_state)
        self.order, self.at = torch.randperm(1 << 15), (1 << 15) - 20
        if initial_state is not None:
            self.order, self.at = initial_state["order"], initial_state["at"]

    def next(self) -> int:
        if self.at == len(self.order):
            raise StopIteration
        self.at += 1
        return int(self.order[self.at - 1])

    def get_state(self) -> dict[str, Any]:
        return {"order": self.order, "at": self.at}


@pytest.mark.parametrize("kind", ["without tensors", "with tensors"])
def test_a_pipeline_of_torchdata_nodes_goes_on_at_the_next_batch(tmp_path: Path, kind: str) -> None:
    """Its ``load_state_dict()`` is without effect after a ``state_dict()``, so a restore must not ask for that."""

    def loader() -> nodes.Loader[Any]:
        root = Shuffled() if kind == "with tensors" else nodes.IterableWrapper(range(20))
        return nodes.Loader(nodes.Batcher(root, batch_size=3, drop_last=False))

    first = loader()
    running = iter(first)
    next(running)
    next(running)
    state: dict[str, Any] = {"data": first}
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, state)
        expected = list(running)
        state["data"] = loader()
        checkpoints.restore(state)
    assert_same(list(state["data"]), expected)
    assert len(expected) == 5
