"""What was captured must not change before it was copied: what is seen of that, and what is read from where.

As in ``test_gate.py``, storage is held, so that "before it was copied" is certain.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
from held_storage import SMALL_ARENA, HeldStorage, assert_stored, cloned_module, train, wide_model
from torch import Tensor, nn

from datastates import Checkpoint, Checkpointer, MutationError

Open = Callable[..., Checkpointer]
Tensors = dict[str, Tensor]


# ---- mutations inside the window


def held_with(
    open_checkpoints: Open, storage: HeldStorage, **options: Any
) -> tuple[Checkpointer, nn.Sequential, Checkpoint, Tensors]:
    """A checkpoint of step 3 that cannot be copied to its end yet."""
    model = wide_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpoints = open_checkpoints(**SMALL_ARENA, **options)
    storage.hold()
    expected = cloned_module(model)
    checkpoint = checkpoints.checkpoint(3, {"model": model, "optimizer": optimizer})
    return checkpoints, model, checkpoint, expected


def assert_refused(checkpoints: Checkpointer, checkpoint: Checkpoint, model: nn.Module, name: str) -> None:
    """The checkpoint failed by the tensor's name, nothing of it is left, and the next one succeeds."""
    for future in (checkpoint.safe_to_mutate, checkpoint.written, checkpoint.durable):
        with pytest.raises(MutationError, match=rf"checkpoint of step 3 on rank 0: {name} changed .*gate\(\)"):
            future.result(60)
    assert checkpoints.steps() == []
    assert checkpoints.stats().num_failed == 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    again = checkpoints.checkpoint(3, {"model": model, "optimizer": optimizer})
    assert_stored(again, cloned_module(model))
    assert sorted(path.name for path in again.durable.result().parent.iterdir()) == [".lock", "step-00000003"]


@pytest.mark.parametrize("verify", ["off", "sample", "full"])
def test_a_write_that_counters_see_fails_the_checkpoint(
    verify: str, open_checkpoints: Open, storage: HeldStorage
) -> None:
    checkpoints, model, checkpoint, _ = held_with(open_checkpoints, storage, verify_immutability=verify)
    with torch.no_grad():
        model[2].weight[0, 0].add_(1)
    storage.release()
    assert_refused(checkpoints, checkpoint, model, r"model\.2\.weight")


def through_data(weight: Tensor) -> None:
    weight.data[-1, -1] += 1


def through_numpy(weight: Tensor) -> None:
    weight.detach().numpy()[-1, -1] += 1


def through_a_pointer(weight: Tensor) -> None:
    ctypes.memset(weight.data_ptr() + weight.nbytes - 1, 0x3E, 1)


BEHIND_THE_COUNTERS = [through_data, through_numpy, through_a_pointer]


@pytest.mark.parametrize("write", BEHIND_THE_COUNTERS)
def test_full_verification_sees_writes_behind_the_counters(
    write: Callable[[Tensor], None], open_checkpoints: Open, storage: HeldStorage
) -> None:
    checkpoints, model, checkpoint, expected = held_with(open_checkpoints, storage, verify_immutability="full")
    version = model[2].weight._version
    write(model[2].weight)
    assert model[2].weight._version == version
    assert not torch.equal(model[2].weight, expected["model.2.weight"])
    storage.release()
    assert_refused(checkpoints, checkpoint, model, r"model\.2\.weight")


@pytest.mark.parametrize("verify", ["off", "full"])
def test_a_write_behind_the_counters_after_the_gate_is_no_mutation(
    verify: str, open_checkpoints: Open, storage: HeldStorage
) -> None:
    checkpoints, model, checkpoint, expected = held_with(open_checkpoints, storage, verify_immutability=verify)
    checkpoints.gate()
    through_data(model[2].weight)
    storage.release()
    assert_stored(checkpoint, expected)


def test_without_verification_writes_behind_the_counters_are_the_users(
    open_checkpoints: Open, storage: HeldStorage
) -> None:
    _, model, checkpoint, expected = held_with(open_checkpoints, storage, verify_immutability="off")
    through_data(model[2].weight)
    storage.release()
    assert_stored(checkpoint, expected | {"model.2.weight": model[2].weight.detach().clone()})


def test_the_sample_is_a_window_that_moves(open_checkpoints: Open, storage: HeldStorage) -> None:
    """A window of half the bytes: the same raw write is seen by every second checkpoint."""
    model = wide_model()
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    half = sum(p.nbytes for p in model.parameters()) // 2
    checkpoints = open_checkpoints(**SMALL_ARENA, verify_immutability="sample", sample_bytes=half)
    seen = []
    for step in range(4):
        storage.hold()
        checkpoint = checkpoints.checkpoint(step, state)
        through_data(model[2].weight)
        storage.release()
        seen.append(isinstance(checkpoint.durable.exception(60), MutationError))
    assert seen == [False, True, False, True]
    assert checkpoints.steps() == [0, 2]


# ---- the structure is cached, the places are not


def test_a_replaced_parameter_memory_is_read_where_it_is_now(open_checkpoints: Open) -> None:
    model = wide_model()
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    checkpoints = open_checkpoints()
    checkpoints.checkpoint(0, state).durable.result(60)
    model[0].weight.data = model[0].weight.data + 1
    assert_stored(checkpoints.checkpoint(1, state), cloned_module(model))


def test_an_optimizer_outside_the_state_waits_for_memory_that_was_replaced(
    open_checkpoints: Open, storage: HeldStorage
) -> None:
    model = wide_model()
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    outside = torch.optim.AdamW(model.parameters())
    checkpoints = open_checkpoints(**SMALL_ARENA)
    checkpoints.checkpoint(0, state).durable.result(60)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    expected = cloned_module(model)
    storage.hold()
    checkpoint = checkpoints.checkpoint(1, state)
    train(model, outside)
    storage.release()
    assert (1, False) in storage.gates
    assert_stored(checkpoint, expected)


@pytest.mark.parametrize("convert", [nn.Module.double, nn.Module.bfloat16], ids=["double", "bfloat16"])
def test_a_model_converted_in_place_is_stored_as_it_is_now(
    convert: Callable[[nn.Module], nn.Module], open_checkpoints: Open
) -> None:
    model = wide_model()
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    checkpoints = open_checkpoints()
    checkpoints.checkpoint(0, state).durable.result(60)
    convert(model)
    assert_stored(checkpoints.checkpoint(1, state), cloned_module(model))


def test_parameters_no_longer_tied_are_both_stored(open_checkpoints: Open) -> None:
    """Tied by memory, two Parameter objects: after one moved away, the other's bytes are not its own any more."""
    model = wide_model()
    model[2].weight.data = model[0].weight.data
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    checkpoints = open_checkpoints()
    tied = cloned_module(model)
    del tied["model.2.weight"]
    assert_stored(checkpoints.checkpoint(0, state), tied)
    model[2].weight.data = model[2].weight.data * 2
    assert_stored(checkpoints.checkpoint(1, state), cloned_module(model))


def test_state_copied_at_the_call_is_not_stale_after_its_memory_was_replaced(open_checkpoints: Open) -> None:
    norm = nn.BatchNorm1d(4)
    checkpoints = open_checkpoints()
    checkpoints.checkpoint(0, {"model": norm}).durable.result(60)
    norm.running_mean.data = torch.full((4,), 3.0)
    assert_stored(checkpoints.checkpoint(1, {"model": norm}), cloned_module(norm))


def test_a_tensor_by_itself(open_checkpoints: Open) -> None:
    value = torch.arange(5.0)
    checkpoint = open_checkpoints().checkpoint(0, {"value": value})
    value.add_(1)
    assert_stored(checkpoint, {"value": torch.arange(5.0)})
