"""Capture: when the kept structure falls, so that no checkpoint holds what was; and that nothing is kept for longer."""

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from training import Tied, assert_same_bits, small_model, train_step, trained

import datastates
from datastates import Checkpointer
from datastates.capture import StateCapture
from datastates.providers.module import ModuleProvider


def stored(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint of one rank, read without our code."""
    from safetensors.torch import load_file

    return load_file(path / "rank-00000.safetensors")


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


# ---- the kept structure, and when it falls ----


def saved_after(tmp_path: Path, state: dict[str, Any], change: Callable[[], object]) -> dict[str, torch.Tensor]:
    """What the second checkpoint holds if ``change`` happens between the two."""
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, state)
        checkpoints.gate()
        change()
        return stored(checkpoints.checkpoint(1, state).durable.result(60))


def assert_saved(found: dict[str, torch.Tensor], model: torch.nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        assert_same_bits(found[f"model.{name}"], tensor, name)


def test_the_structure_is_kept_while_nothing_changes() -> None:
    model, optimizer = trained()
    state = {"model": model, "optimizer": optimizer, "progress": {"epoch": 1}}
    capture = StateCapture(rank=0)
    first = capture.take(state, 0, 0).structure
    train_step(model, optimizer)
    state["progress"]["epoch"] = 2
    second = capture.take(state, 0, 0)
    assert second.structure is first
    assert second.python["progress"] == {"epoch": 2}


def test_a_replaced_parameter_is_saved(tmp_path: Path) -> None:
    model, optimizer = trained()

    def replace() -> None:
        model[0].weight = torch.nn.Parameter(torch.randn(5, 6))

    assert_saved(saved_after(tmp_path, {"model": model, "optimizer": optimizer}, replace), model)


def test_a_replaced_submodule_is_saved(tmp_path: Path) -> None:
    model, optimizer = trained()

    def replace() -> None:
        model[3] = torch.nn.Linear(5, 2)

    found = saved_after(tmp_path, {"model": model, "optimizer": optimizer}, replace)
    assert_saved(found, model)


def test_new_pointers_behind_the_same_parameters_are_saved(tmp_path: Path) -> None:
    """The structure is the same, the memory is not: keeping pointers would save the old values again."""
    model, optimizer = trained()

    def move() -> None:
        for parameter in model.parameters():
            parameter.data = torch.randn_like(parameter)
        for buffer in model.buffers():
            buffer.data = buffer.data + 1
        for state in optimizer.state.values():
            state["exp_avg"].data = state["exp_avg"] + 1

    found = saved_after(tmp_path, {"model": model, "optimizer": optimizer}, move)
    assert_saved(found, model)
    for name, parameter in model.named_parameters():
        assert_same_bits(found[f"optimizer.state.{name}.exp_avg"], optimizer.state[parameter]["exp_avg"], name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_dtype_behind_the_same_parameters_is_saved(tmp_path: Path, dtype: torch.dtype) -> None:
    model = torch.nn.Linear(3, 4)  # no buffers: module.to() keeps the identity of parameters
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    found = saved_after(tmp_path, {"model": model, "optimizer": optimizer}, lambda: model.to(dtype))
    assert_saved(found, model)


@pytest.mark.parametrize("shape", [(4, 3), (24,), (2, 2)])
def test_another_shape_behind_the_same_parameter_is_saved(tmp_path: Path, shape: tuple[int, ...]) -> None:
    model = torch.nn.Linear(3, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def reshape() -> None:
        model.weight.data = torch.randn(shape)

    assert_saved(saved_after(tmp_path, {"model": model, "optimizer": optimizer}, reshape), model)


def test_another_shape_of_the_same_memory_is_saved(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def reshape() -> None:
        model.weight.data = model.weight.data.view(3, 4)

    assert_saved(saved_after(tmp_path, {"model": model, "optimizer": optimizer}, reshape), model)


def test_strides_that_change_behind_the_same_parameter_are_saved(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def transpose() -> None:
        model.weight.data = torch.randn(3, 4).t()

    assert_saved(saved_after(tmp_path, {"model": model, "optimizer": optimizer}, transpose), model)


def test_a_tie_that_is_loosened_behind_the_same_parameters_is_seen(tmp_path: Path) -> None:
    model = Tied(1, tie=False)
    model.head.weight = torch.nn.Parameter(model.embedding.weight.detach())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def loosen() -> None:
        model.head.weight.data = torch.randn(7, 3)

    assert_saved(saved_after(tmp_path, {"model": model, "optimizer": optimizer}, loosen), model)


def test_optimizer_state_is_saved_from_when_it_appears(tmp_path: Path) -> None:
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters())
    found = saved_after(tmp_path, {"model": model, "optimizer": optimizer}, lambda: train_step(model, optimizer))
    assert_saved(found, model)
    for name, parameter in model.named_parameters():
        assert_same_bits(found[f"optimizer.state.{name}.exp_avg"], optimizer.state[parameter]["exp_avg"], name)


def test_optimizer_state_that_is_replaced_or_grows_is_saved(tmp_path: Path) -> None:
    model, optimizer = trained()
    weight = model[0].weight

    def replace() -> None:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        optimizer.state[weight]["more"] = torch.ones(3)
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})

    found = saved_after(tmp_path, {"model": model, "optimizer": optimizer}, replace)
    assert_same_bits(found["optimizer.state.0.weight.exp_avg"], optimizer.state[weight]["exp_avg"])
    assert torch.equal(found["optimizer.state.0.weight.more"], torch.ones(3))


def test_another_state_under_the_same_names_is_saved(tmp_path: Path) -> None:
    first, second = trained(1), trained(2)
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, dict(zip(("model", "optimizer"), first, strict=True)))
        state = dict(zip(("model", "optimizer"), second, strict=True))
        found = stored(checkpoints.checkpoint(1, state).durable.result(60))
    assert_saved(found, second[0])


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("how", ["data", "local", "swap"])
def test_a_distributed_tensor_whose_local_part_is_replaced_is_saved(tmp_path: Path, how: str) -> None:
    mesh = init_device_mesh("cpu", (1,))
    model = torch.nn.Linear(3, 4, bias=False)
    model.weight = torch.nn.Parameter(distribute_tensor(model.weight.detach(), mesh, [Shard(0)]))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    new = torch.randn(4, 3)

    def replace() -> None:
        if how == "local":
            model.weight._local_tensor = new
        elif how == "data":
            model.weight.data = distribute_tensor(new, mesh, [Shard(0)])
        else:
            other = torch.nn.Parameter(distribute_tensor(new, mesh, [Shard(0)]))
            torch.utils.swap_tensors(model.weight, other)

    found = saved_after(tmp_path / "runs", {"model": model, "optimizer": optimizer}, replace)
    assert isinstance(model.weight, DTensor)
    assert_same_bits(found["model.weight"], model.weight.full_tensor())


def test_a_refused_state_leaves_the_checkpointer_usable(tmp_path: Path) -> None:
    model, optimizer = trained()
    state = {"model": model, "optimizer": optimizer}
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, state)
        with pytest.raises(TypeError, match="no state provider"):
            checkpoints.checkpoint(1, {**state, "odd": object()})
        checkpoints.gate()
        train_step(model, optimizer)
        found = stored(checkpoints.checkpoint(1, state).durable.result(60))
    assert checkpoints.stats().num_begun == 2
    assert_saved(found, model)


# ---- nothing is kept ----


def alive(references: list[weakref.ref]) -> int:
    gc.collect()
    return sum(reference() is not None for reference in references)


class Cloning:
    """Hands out new tensors with every ``state_dict()``, and remembers them weakly."""

    def __init__(self) -> None:
        self.handed_out: list[weakref.ref] = []

    def state_dict(self) -> dict[str, Any]:
        tensor = torch.ones(1000)
        self.handed_out.append(weakref.ref(tensor.untyped_storage()))
        return {"t": tensor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


def test_tensors_that_an_object_hands_out_do_not_outlive_the_checkpoint(tmp_path: Path) -> None:
    cloning = Cloning()
    with Checkpointer(tmp_path) as checkpoints:
        handles = [checkpoints.checkpoint(step, {"data": cloning}) for step in range(3)]
        for handle in handles:
            handle.durable.result(60)
        assert len(cloning.handed_out) >= 3
        assert alive(cloning.handed_out) == 0


def test_a_closed_checkpointer_and_its_handles_keep_no_state(tmp_path: Path) -> None:
    model, optimizer = trained()
    references = [weakref.ref(p.untyped_storage()) for p in model.parameters()] + [weakref.ref(model)]
    checkpoints = Checkpointer(tmp_path)
    handle = checkpoints.checkpoint(0, {"model": model, "optimizer": optimizer})
    checkpoints.close()
    del model, optimizer
    assert alive(references) == 0
    assert handle.durable.result(0).is_dir()
    assert checkpoints.stats().num_durable == 1


def test_old_memory_is_let_go_when_a_parameter_moves(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(1000))
    state = {"w": parameter, "optimizer": torch.optim.SGD([parameter], 0.1)}
    old = [weakref.ref(parameter.untyped_storage())]
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, state).durable.result(60)
        parameter.data = torch.zeros(1000)
        checkpoints.checkpoint(1, state).durable.result(60)
        assert alive(old) == 0


def test_a_failed_checkpoint_keeps_no_state_though_its_error_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cloning = Cloning()
    with Checkpointer(tmp_path, max_consecutive_failures=9) as checkpoints:
        checkpoints.checkpoint(0, {"data": cloning}).durable.result(60)
        again = checkpoints.checkpoint(0, {"data": cloning})
        error = again.durable.exception(60)
        assert isinstance(error, datastates.CheckpointError)
        assert "published already" in str(error)
        assert "published already" in caplog.text
        assert alive(cloning.handed_out) == 0


@pytest.mark.usefixtures("process_group")
def test_a_distributed_tensor_in_a_dict_is_restored_in_place(tmp_path: Path) -> None:
    mesh = init_device_mesh("cpu", (1,))
    values = torch.arange(6.0).reshape(3, 2)
    state = {"extra": {"w": distribute_tensor(values.clone(), mesh, [Shard(0)]), "n": 1}}
    live = state["extra"]["w"]
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, state).durable.result(60)
        live.to_local().zero_()
        checkpoints.restore(state)
    assert state["extra"]["w"] is live
    assert torch.equal(live.to_local(), values)


def test_values_that_are_new_at_every_step_do_not_have_the_rest_collected_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 8,000 tensors, that made every call ten times as long."""
    collected = []
    collect = ModuleProvider.collect
    monkeypatch.setattr(ModuleProvider, "collect", lambda self, *rest: collected.append(1) or collect(self, *rest))
    model = torch.nn.Linear(2, 2)
    with datastates.Checkpointer(tmp_path, keep_last=None) as checkpoints:
        for step in range(3):
            values = {"n": 1000 + step, "run": {"losses": [step], "t": torch.full((2,), float(step))}, "at": (step,)}
            checkpoints.checkpoint(step, {"model": model, **values, "none": None if step < 2 else "now"})
    assert len(collected) == 2, "the first time, and when a value became one of another type"
    for step in range(3):
        found = datastates.open_checkpoint(tmp_path / f"step-{step:08d}").python()
        assert (found["n"], found["run"]["losses"], found["at"]) == (1000 + step, [step], (step,))
        assert found["run"]["t"].tolist() == [step, step]
        assert found["none"] == (None if step < 2 else "now")
