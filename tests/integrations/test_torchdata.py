"""torchdata's StatefulDataLoader in the state: a resumed epoch goes on with the batches it had left."""

import itertools
from pathlib import Path

import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

import datastates


def loader(num_workers: int) -> StatefulDataLoader:
    return StatefulDataLoader(torch.arange(24), batch_size=2, shuffle=True, num_workers=num_workers)


def batches(found: StatefulDataLoader) -> list[list[int]]:
    return [batch.tolist() for batch in found]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_middle_of_an_epoch(tmp_path: Path, num_workers: int) -> None:
    torch.manual_seed(1)
    data = loader(num_workers)
    first_epoch = batches(data)
    with datastates.Checkpointer(tmp_path) as checkpoints:
        left = iter(data)
        seen = [next(left).tolist() for _ in range(5)]
        checkpoints.checkpoint(4, {"data": data, "rng": datastates.rng_state()}).durable.result(60)
        expected = [batch.tolist() for batch in left]
    assert sorted(itertools.chain(*seen, *expected)) == list(range(24))
    assert seen + expected != first_epoch

    torch.manual_seed(2)
    fresh = loader(num_workers)
    with datastates.Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.restore({"data": fresh, "rng": datastates.rng_state()}) == 5
    assert batches(fresh) == expected
    torch.manual_seed(3)
    assert sorted(itertools.chain(*batches(fresh))) == list(range(24))
