"""State of one rank alone."""

from pathlib import Path
from typing import Any

import torch
from conformance import ProviderConformance

import datastates
from datastates.capture import make_context
from datastates.config import CheckpointerConfig
from datastates.coordination import Channel
from datastates.directory import CheckpointDirectory, read_manifest
from datastates.restore import Vote, restore


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
        CheckpointDirectory(tmp_path),
        vote,
        state,
        config=CheckpointerConfig(),
        strict=True,
        only=None,
        allow_pickle=False,
    )
    assert (step, damaged) == (5, set())
    assert torch.equal(state["cache"].value["t"], torch.ones(2))


def test_contexts_know_what_is_inside() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    context = make_context({"m": datastates.per_rank(model), "o": datastates.per_rank(optimizer)}, rank=0)
    assert context.group_of(model.weight) == 0
    assert context.modules == {"m": model}
