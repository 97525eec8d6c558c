"""Capture: what is held and what is copied, under which names, and what is refused."""

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict
from training import Tied, assert_same_bits, small_model, trained

from datastates import Checkpointer
from datastates.capture import EVERYTHING, StateCapture, Structure, describe, leaves, undescribe
from datastates.directory import read_manifest
from datastates.providers import COPIED


def structure(state: dict[str, Any], **options: Any) -> Structure:
    return StateCapture(rank=0, **options).take(state, 0, 0).structure


def groups(state: dict[str, Any], **options: Any) -> dict[str, int]:
    return {held.name: held.group for held in structure(state, **options).held}


def stored(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint of one rank, read without our code."""
    from safetensors.torch import load_file

    return load_file(path / "rank-00000.safetensors")


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


# ---- what may be lazy ----


def test_only_what_an_optimizer_of_the_state_writes_is_lazy() -> None:
    model, optimizer = trained()
    model[3].bias.requires_grad_(False)
    ema = copy.deepcopy(model)
    found = groups({"model": model, "ema": ema, "optimizer": optimizer, "extra": {"t": torch.ones(2)}})
    lazy = {name for name, group in found.items() if group != COPIED}
    assert lazy == {name for name in found if name.startswith("optimizer.state.")} | {
        f"model.{name}" for name, _ in model.named_parameters()
    }
    assert found["model.1.running_mean"] == found["ema.0.weight"] == found["extra.t"] == COPIED


def test_without_its_optimizer_everything_is_copied() -> None:
    model, _ = trained()
    assert set(groups({"model": model}).values()) == {COPIED}


def test_every_optimizer_has_a_group_of_its_own() -> None:
    model = small_model()
    first, second = torch.optim.SGD(model[0].parameters(), 0.1), torch.optim.SGD(model[3].parameters(), 0.1)
    found = groups({"model": model, "a": first, "b": second})
    assert found["model.0.weight"] == 0
    assert found["model.3.weight"] == 1
    assert found["model.1.weight"] == COPIED


def test_a_parameter_without_bytes_of_its_own_is_copied() -> None:
    parameter = torch.nn.Parameter(torch.randn(4, 3).t())
    optimizer = torch.optim.SGD([parameter], 0.1)
    assert groups({"w": parameter, "optimizer": optimizer}) == {"w": COPIED}


def test_what_is_declared_lazy_is_and_every_optimizer_waits_for_it() -> None:
    frozen, model = torch.ones(3), small_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    capture = StateCapture(rank=0, lazy=["frozen*"])
    taken = capture.take({"frozen": frozen, "model": model, "optimizer": optimizer}, 0, 0)
    declared = {held.name: held.group for held in taken.structure.held}["frozen"]
    assert declared == 1  # behind the one optimizer
    stranger = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1)
    assert taken.writers.groups_of(stranger) == {declared + 1}
    assert taken.writers.groups_of(optimizer) == {declared + 1, 1}


def test_an_optimizer_outside_the_state_waits_for_the_memory_that_it_shares() -> None:
    model = small_model()
    inside = torch.optim.SGD(model.parameters(), 0.1)
    outside = torch.optim.SGD([model[0].weight.view(-1)[:3].detach().requires_grad_()], 0.1)
    taken = StateCapture(rank=0).take({"model": model, "optimizer": inside}, 0, 0)
    assert taken.writers.groups_of(outside) == {1}


def test_batch_norm_statistics_change_behind_the_counter_and_are_right_all_the_same(tmp_path: Path) -> None:
    model, optimizer = trained()
    mean = model[1].running_mean
    with Checkpointer(tmp_path) as checkpoints:
        expected = mean.clone()
        handle = checkpoints.checkpoint(0, {"model": model, "optimizer": optimizer})
        version = mean._version
        model(torch.randn(4, 6))
        assert not torch.equal(mean, expected)
        assert mean._version == version, "the counter saw it: then buffers could be watched like parameters"
        path = handle.durable.result(60)
    assert_same_bits(stored(path)["model.1.running_mean"], expected)


def test_much_that_must_be_copied_is_told_once_and_how_to_avoid_it() -> None:
    capture = StateCapture(rank=0, copied_warning_bytes=100)
    state = {"table": torch.zeros(100), "small": torch.zeros(1)}
    with pytest.warns(UserWarning, match=r"copied inside every checkpoint.*largest: table.*lazy="):
        capture.take(state, 0, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        capture.take({**state, "another": torch.zeros(1)}, 0, 0)


# ---- names ----


def stock_names(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> set[str]:
    """What torch calls the tensors of the state."""
    flat = StateDictOptions(flatten_optimizer_state_dict=True)
    of_optimizer = get_optimizer_state_dict(model, optimizer, options=flat)
    return {f"model.{name}" for name in get_model_state_dict(model)} | {
        f"optimizer.{name}" for name, value in of_optimizer.items() if isinstance(value, torch.Tensor)
    }


def checkpoint_wrapped() -> torch.nn.Module:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = small_model()
    model[0] = checkpoint_wrapper(model[0])
    return checkpoint_wrapper(model)


class HasAModuleCalledModule(torch.nn.Module):
    """Its name must stay, although wrappers use it too."""

    def __init__(self) -> None:
        super().__init__()
        self.module = small_model()

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.module(batch)


WRAPPINGS: dict[str, Callable[[], torch.nn.Module]] = {
    "plain": small_model,
    "a child called module": HasAModuleCalledModule,
    "compiled": lambda: torch.compile(small_model()),
    "checkpoint_wrapper": checkpoint_wrapped,
    "ddp": lambda: torch.nn.parallel.DistributedDataParallel(small_model()),
    "compiled ddp": lambda: torch.compile(torch.nn.parallel.DistributedDataParallel(HasAModuleCalledModule())),
    "ddp of compiled": lambda: torch.nn.parallel.DistributedDataParallel(torch.compile(small_model())),
}


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # torch.compile imports it
def test_names_are_those_of_torch(wrapping: str) -> None:
    model = WRAPPINGS[wrapping]()
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert set(groups({"model": model, "optimizer": optimizer})) == stock_names(model, optimizer)


def test_finding_names_does_not_step_the_optimizer() -> None:
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = [p.detach().clone() for p in model.parameters()]
    steps: list[object] = []
    optimizer.register_step_pre_hook(lambda *args: steps.append(args))
    found = groups({"model": model, "optimizer": optimizer})
    assert not any(name.startswith("optimizer.") for name in found)
    assert not optimizer.state
    assert steps == []
    for parameter, kept in zip(model.parameters(), before, strict=True):
        assert_same_bits(parameter, kept)
        assert torch.equal(parameter.grad, torch.ones_like(parameter))


# ---- ties ----


@pytest.mark.parametrize("tied_again", [True, False])
def test_tied_weights_are_stored_once_and_come_back_tied_or_not(tmp_path: Path, tied_again: bool) -> None:
    model = Tied(1)
    with Checkpointer(tmp_path) as checkpoints:
        manifest = read_manifest(checkpoints.checkpoint(0, {"model": model}).durable.result(60))
    assert set(manifest.tensors) == {"model.embedding.weight"}
    assert manifest.aliases == {"model.head.weight": "model.embedding.weight"}
    fresh = Tied(2, tie=tied_again)
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.restore({"model": fresh})
    for name in ("embedding", "head"):
        assert_same_bits(getattr(fresh, name).weight, model.embedding.weight, name)
    assert (fresh.head.weight is fresh.embedding.weight) == tied_again


@pytest.mark.parametrize("view", [torch.t, torch.conj, lambda x: torch.conj(x).t(), torch.Tensor._neg_view])
def test_another_view_of_the_same_memory_is_not_taken_for_a_tied_tensor(tmp_path: Path, view: Any) -> None:
    """Its values are others: restored under its own name, they leave both as they were."""
    generator = torch.Generator().manual_seed(3)
    saved = torch.randn(3, 3, dtype=torch.complex64, generator=generator)
    fresh = torch.zeros_like(saved)
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, {"a": saved, "b": view(saved)})
        checkpoints.restore({"a": fresh, "b": view(fresh)})
    assert_same_bits(fresh, saved)
    assert_same_bits(view(fresh).resolve_conj().resolve_neg(), view(saved).resolve_conj().resolve_neg())


def test_parameters_that_share_memory_without_being_one_are_tied_as_well() -> None:
    model = Tied(1, tie=False)
    model.head.weight = torch.nn.Parameter(model.embedding.weight.detach())
    found = structure({"model": model})
    assert [held.name for held in found.held] == ["model.embedding.weight"]
    assert found.aliases == {"model.head.weight": "model.embedding.weight"}


def test_empty_tensors_are_not_taken_for_ties() -> None:
    found = structure({"a": torch.zeros(0), "b": torch.zeros(0)})
    assert [held.name for held in found.held] == ["a", "b"]
    assert found.aliases == {}


# ---- what is refused ----


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two tensors of the state have one name: a\.b; rename a key"):
        structure({"a": torch.nn.ParameterDict({"b": torch.nn.Parameter(torch.ones(1))}), "a.b": torch.ones(2)})


def test_two_values_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two values of the state have one name: a\.b; rename a key"):
        structure({"a": {"b": 1, "model": torch.nn.Module()}, "a.b": 2})


@pytest.mark.parametrize("key", [1, "", None, ("a",)])
def test_keys_are_strings(key: Any) -> None:
    with pytest.raises(TypeError, match="state keys must be non-empty strings, got"):
        list(leaves({key: 1}))


def test_an_object_without_a_provider_is_named_with_the_remedy() -> None:
    with pytest.raises(
        TypeError, match=r"state\['run\.odd'\] is a .*object, which no state provider.*register_provider"
    ):
        structure({"run": {"odd": object()}})


def test_objects_in_a_list_are_refused_with_a_remedy_that_helps() -> None:
    model = small_model()
    with pytest.raises(TypeError, match=r"optimizers\.0 is a torch\.optim\.sgd\.SGD.*in a dict"):
        structure({"model": model, "optimizers": [torch.optim.SGD(model.parameters(), 0.1)]})


def test_a_sparse_tensor_is_named() -> None:
    with pytest.raises(TypeError, match=r"table is a torch\.sparse_coo tensor .*only dense tensors"):
        structure({"table": torch.eye(3).to_sparse()})


# ---- descriptions and samples ----


def test_descriptions_travel_whole() -> None:
    found = structure({"model": Tied(1), "e": torch.zeros(0, 2), "s": torch.tensor(1.0)})
    held, aliases = undescribe(describe(found.held, found.aliases))
    assert (tuple(held), aliases) == (found.held, found.aliases)
    assert Structure.of(held, aliases).digest == found.digest
    assert Structure.of(held[:-1], aliases).digest != found.digest


def test_samples_walk_around_all_that_is_lazy() -> None:
    parameter = torch.nn.Parameter(torch.arange(10, dtype=torch.float32))
    state = {"w": parameter, "optimizer": torch.optim.SGD([parameter], 0.1), "copied": torch.ones(100)}
    capture = StateCapture(rank=0)
    assert capture.take(state, 0, 0).refs.samples() == []
    seen = {
        (begin, end)
        for ordinal in range(5)
        for _, begin, end, _ in capture.take(state, ordinal * 16, 16).refs.samples()
    }
    assert {byte for begin, end in seen for byte in range(begin, end)} == set(range(40))
    (everything,) = capture.take(state, 8, EVERYTHING).refs.samples()
    assert everything[1:3] == (0, 40)
