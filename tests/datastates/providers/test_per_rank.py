"""State of one rank alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conformance import ProviderConformance
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import datastates
from datastates.capture import collect, leaves, make_context
from datastates.config import CheckpointerConfig
from datastates.coordination import Channel
from datastates.directory import CheckpointDirectory, read_manifest
from datastates.restore import Vote, restore
from datastates.tiers.library import Library
from oneflow_sbp import Box


class TestPerRankTree(ProviderConformance):
    def make(self, seed: int) -> dict[str, Any]:
        return {"cache": datastates.per_rank({"t": torch.full((3,), 10.0 * seed), "n": 10 * seed})}

    def change(self, state: dict[str, Any]) -> None:
        state["cache"].value["t"].add_(1)
        state["cache"].value["n"] += 1

    def content(self, state: dict[str, Any]) -> Any:
        return state["cache"].value


class TestPerRankModule(ProviderConformance):
    def make(self, seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        model = torch.nn.Linear(6, 2)
        return {
            "expert": datastates.per_rank(model),
            "optimizer": datastates.per_rank(torch.optim.Adam(model.parameters())),
        }

    def change(self, state: dict[str, Any]) -> None:
        model = state["expert"].value
        model(torch.ones(1, 6)).sum().backward()
        state["optimizer"].value.step()

    def content(self, state: dict[str, Any]) -> Any:
        model, optimizer = state["expert"].value, state["optimizer"].value
        return [list(model.parameters()), [dict(optimizer.state[p]) for p in model.parameters()]]


def test_it_is_stored_under_the_rank_and_comes_back_to_the_rank_modulo_those_that_saved(tmp_path: Path) -> None:
    with datastates.Checkpointer(tmp_path) as checkpoints:
        handle = checkpoints.checkpoint(4, {"cache": datastates.per_rank({"t": torch.ones(2)})})
        assert set(read_manifest(handle.durable.result(60)).tensors) == {"per_rank.0.cache.t"}
    vote = Vote(Channel(None, 0, 1), 60)
    vote.rank = 3  # of four, although one rank saved
    state: dict[str, Any] = {"cache": datastates.per_rank({"t": torch.zeros(2)})}
    step, damaged = restore(
        Library(CheckpointDirectory(tmp_path), ()),
        vote,
        state,
        config=CheckpointerConfig(),
        strict=True,
        only=None,
        allow_pickle=False,
    )
    assert (step, damaged) == (5, set())
    assert torch.equal(state["cache"].value["t"], torch.ones(2))


@pytest.fixture
def second_of_two() -> Iterator[dist.DeviceMesh]:
    """This is rank 1 of two, the other does not exist: descriptions need no communication."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def test_a_part_of_a_tensor_is_the_whole_of_what_this_rank_has(second_of_two: dist.DeviceMesh) -> None:
    part = DTensor.from_local(torch.ones(2, 3), second_of_two, [Shard(0)], run_check=False)
    state = {"common": {"w": part}, "own": datastates.per_rank({"w": part})}
    context = make_context(state, rank=1)
    common, own = (collect(name, value, context).held[0] for name, value, _, _ in leaves(state))
    assert (common.name, common.shape, common.box) == ("common.w", (4, 3), Box((2, 0), (2, 3)))
    assert (own.name, own.shape, own.box) == ("per_rank.1.own.w", (2, 3), Box.whole((2, 3)))


def test_contexts_know_what_is_inside() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    context = make_context({"m": datastates.per_rank(model), "o": datastates.per_rank(optimizer)}, rank=0)
    assert context.group_of(model.weight) == 0
    assert context.modules == {"m": model}


def test_another_value_in_the_wrapper_is_stored(tmp_path: Path) -> None:
    own = datastates.per_rank(torch.zeros(2))
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, {"own": own})
        own.value = torch.ones(2)
        checkpoints.checkpoint(1, {"own": own})
    assert datastates.open_checkpoint(tmp_path).read("per_rank.0.own").tolist() == [1, 1]


def test_a_key_that_would_pass_for_the_values_of_single_ranks_is_refused(tmp_path: Path) -> None:
    with (
        datastates.Checkpointer(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=r"a key of the state is 'per_rank'.*rename it"),
    ):
        checkpoints.checkpoint(0, {"per_rank": {"0": torch.ones(2), "1": torch.zeros(2)}})
