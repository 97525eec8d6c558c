"""Optimizers: state under the names of parameters, created before the first step, groups and their options."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import ProviderConformance, assert_same
from training import small_model, train_step

import datastates


class OptimizerConformance(ProviderConformance):
    """A model, and the optimizer that a subclass makes for it."""

    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        raise NotImplementedError

    def make(self, seed: int) -> dict[str, Any]:
        model = small_model(seed)
        return {"model": model, "optimizer": self.optimizer(model)}

    def change(self, state: dict[str, Any]) -> None:
        train_step(state["model"], state["optimizer"], seed=len(state["optimizer"].state))

    def content(self, state: dict[str, Any]) -> Any:
        optimizer = state["optimizer"]
        parameters = list(state["model"].parameters())
        groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        return [parameters, [dict(sorted(optimizer.state[p].items())) for p in parameters], groups]


class TestAdamW(OptimizerConformance):
    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True)


class TestFusedAdam(OptimizerConformance):
    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=0.01, fused=True)


class TestForeachAdamW(OptimizerConformance):
    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=0.01, foreach=True)


class TestMomentum(OptimizerConformance):
    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


class TestTwoGroups(OptimizerConformance):
    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        decay = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim == 1]
        groups = [{"params": decay, "weight_decay": 0.1, "name": "decay"}, {"params": others, "lr": 0.5}]
        return torch.optim.AdamW(groups, lr=0.01)


class TestTensorLearningRate(OptimizerConformance):
    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01))

    def change(self, state: dict[str, Any]) -> None:
        super().change(state)
        state["optimizer"].param_groups[0]["lr"].mul_(0.9)


class NestedOptimizer(torch.optim.Optimizer):
    """Keeps Python values, a dict of tensors and a list beside its tensors, as Shampoo-like optimizers do."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["count"], state["history"] = 0, []
                    state["factors"] = {i: torch.ones(n) for i, n in enumerate(parameter.shape)}
                state["count"] += 1
                state["history"].append(float(parameter.grad.norm()))
                for factor in state["factors"].values():
                    factor += parameter.grad.abs().sum()
                parameter -= group["lr"] / state["count"] * parameter.grad


class TestNestedState(OptimizerConformance):
    restores_in_place = False  # what is inside Python values is stored with them

    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        return NestedOptimizer(model.parameters())


class OddKeys(torch.optim.Optimizer):
    """Keeps tensors and values under keys that are no strings, and some under no parameter."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.state["all"].setdefault("norms", []).append(0.0)
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            for dim in range(parameter.ndim):
                state[dim] = state.get(dim, torch.zeros(parameter.shape[dim])).add_(parameter.grad.abs().mean())
            state[(1, "count")] = state.get((1, "count"), 0) + 1
            self.state["all"]["norms"][-1] += float(parameter.grad.norm())
            parameter -= 0.1 * parameter.grad


class TestOddKeys(OptimizerConformance):
    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        return OddKeys(model.parameters())

    def content(self, state: dict[str, Any]) -> Any:
        optimizer = state["optimizer"]
        return [[optimizer.state.get(p, {}) for p in state["model"].parameters()], optimizer.state["all"]]


def test_two_keys_with_one_name_are_refused(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = OddKeys([weight])
    optimizer.state[weight] = {0: 1, "0": 2}
    with (
        datastates.Checkpointer(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=r"optimizer\.state\.group0\.param0 has the key '0' and others 0; rename one"),
    ):
        checkpoints.checkpoint(0, {"optimizer": optimizer})


def adafactor(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(parameters, lr=0.1)


def muon(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Muon([p for p in parameters if p.ndim == 2], lr=0.1)


class EveryOptimizer(OptimizerConformance):
    """One of torch's; the subclasses differ in nothing else."""

    kind: Any

    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        return self.kind(model.parameters())


for _kind in ("Adadelta", "Adagrad", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"):
    globals()[f"Test{_kind}"] = type(f"Test{_kind}", (EveryOptimizer,), {"kind": getattr(torch.optim, _kind)})
TestAdafactor = type("TestAdafactor", (EveryOptimizer,), {"kind": staticmethod(adafactor)})
TestMuon = type("TestMuon", (EveryOptimizer,), {"kind": staticmethod(muon)})


class TestLbfgs(OptimizerConformance):
    restores_in_place = False  # its history is a list of tensors, stored with the Python values

    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3, history_size=2)

    def change(self, state: dict[str, Any]) -> None:
        model, optimizer = state["model"].eval(), state["optimizer"]

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(torch.ones(4, 6)).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


class TestTwoOptimizersOfOneModel(ProviderConformance):
    def make(self, seed: int) -> dict[str, Any]:
        model = small_model(seed)
        first, second = model[0].parameters(), [*model[1].parameters(), *model[3].parameters()]
        optimizers = {"first": torch.optim.AdamW(first), "second": torch.optim.SGD(second, lr=0.1, momentum=0.9)}
        return {"model": model, "optimizers": optimizers}

    def change(self, state: dict[str, Any]) -> None:
        train_step(state["model"], *state["optimizers"].values())

    def content(self, state: dict[str, Any]) -> Any:
        return [
            list(state["model"].parameters()),
            [[dict(o.state[p]) for g in o.param_groups for p in g["params"]] for o in state["optimizers"].values()],
        ]


class TestOptimizerOfTwoModules(ProviderConformance):
    """Both modules have a parameter called ``weight``: the owners tell them apart."""

    def make(self, seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        a, b = torch.nn.Linear(6, 2), torch.nn.Linear(6, 2)
        return {"a": a, "b": b, "optimizer": torch.optim.AdamW([*a.parameters(), *b.parameters()])}

    def change(self, state: dict[str, Any]) -> None:
        train_step(state["a"])
        train_step(state["b"], state["optimizer"], seed=3)

    def content(self, state: dict[str, Any]) -> Any:
        return [dict(state["optimizer"].state[p]) for m in (state["a"], state["b"]) for p in m.parameters()]


class TestOptimizerOfNoModule(ProviderConformance):
    def make(self, seed: int) -> dict[str, Any]:
        weight = torch.nn.Parameter(torch.randn(3, generator=torch.Generator().manual_seed(seed)))
        return {"weight": weight, "optimizer": torch.optim.Adam([weight])}

    def change(self, state: dict[str, Any]) -> None:
        state["weight"].grad = state["weight"].detach().clone()
        state["optimizer"].step()

    def content(self, state: dict[str, Any]) -> Any:
        return [state["weight"], dict(state["optimizer"].state[state["weight"]])]


def test_other_groups_are_refused_before_anything_changes(tmp_path: Path) -> None:
    model = small_model(1)
    optimizer = torch.optim.AdamW(model.parameters())
    train_step(model, optimizer)
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, {"model": model, "optimizer": optimizer})
    other = small_model(2)
    before = copy.deepcopy(other.state_dict())
    groups = [{"params": other[0].parameters()}, {"params": [*other[1].parameters(), *other[3].parameters()]}]
    two = torch.optim.AdamW(groups)
    with (
        datastates.Checkpointer(tmp_path) as checkpoints,
        pytest.raises(ValueError, match="optimizer has 2 parameter groups, the checkpoint 1; build"),
    ):
        checkpoints.restore({"model": other, "optimizer": two})
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    assert not two.state


def test_a_refused_restore_leaves_no_state_behind(tmp_path: Path) -> None:
    model = small_model(1)
    optimizer = torch.optim.AdamW(model.parameters())
    train_step(model, optimizer)
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, {"model": model, "optimizer": optimizer, "extra": torch.ones(2)})
    fresh = small_model(2)
    fresh_optimizer = torch.optim.AdamW(fresh.parameters())
    with (
        datastates.Checkpointer(tmp_path) as checkpoints,
        pytest.raises(ValueError, match="not in the live state: extra"),
    ):
        checkpoints.restore({"model": fresh, "optimizer": fresh_optimizer})
    assert not fresh_optimizer.state


def checkpoint_before_the_first_step(directory: Path) -> None:
    model = small_model(1)
    with datastates.Checkpointer(directory) as checkpoints:
        checkpoints.checkpoint(0, {"model": model, "optimizer": torch.optim.AdamW(model.parameters())})


def stepped(seed: int) -> dict[str, Any]:
    model = small_model(seed)
    optimizer = torch.optim.AdamW(model.parameters())
    train_step(model, optimizer)
    return {"model": model, "optimizer": optimizer}


def test_a_live_optimizer_goes_back_to_before_its_first_step(tmp_path: Path) -> None:
    checkpoint_before_the_first_step(tmp_path)
    state = stepped(2)
    with datastates.Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.restore(state) == 1
        assert not state["optimizer"].state
        train_step(state["model"], state["optimizer"])
        checkpoints.checkpoint(1, state).durable.result(60)
    expected = stepped(1)
    for parameter, other in zip(state["model"].parameters(), expected["model"].parameters(), strict=True):
        assert_same(state["optimizer"].state[parameter], expected["optimizer"].state[other])


def test_going_back_to_before_the_first_step_forgets_nothing_that_is_not_asked_for(tmp_path: Path) -> None:
    checkpoint_before_the_first_step(tmp_path)
    for options in ({"only": "model.*"}, {"strict": False}, {"only": "optimizer.state.0.*", "strict": False}):
        state = stepped(2)
        expected = copy.deepcopy(list(state["optimizer"].state.values()))
        with datastates.Checkpointer(tmp_path) as checkpoints:
            checkpoints.restore(state, **options)
        assert_same(list(state["optimizer"].state.values()), expected)


def test_a_damaged_checkpoint_of_before_the_first_step_gives_the_state_back(tmp_path: Path) -> None:
    """Going on to an older one, which has it, finds the very tensors."""
    state = stepped(1)
    expected = [dict(items) for items in copy.deepcopy(list(state["optimizer"].state.values()))]
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, state).durable.result(60)
        fresh = small_model(1)
        later = checkpoints.checkpoint(1, {"model": fresh, "optimizer": torch.optim.AdamW(fresh.parameters())})
        file = later.durable.result(60) / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    live = stepped(2)
    before = [item.data_ptr() for items in live["optimizer"].state.values() for item in items.values()]
    with datastates.Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.restore(live) == 1
    assert [i.data_ptr() for items in live["optimizer"].state.values() for i in items.values()] == before
    assert_same([dict(items) for items in live["optimizer"].state.values()], expected)


def test_a_refused_restore_to_before_the_first_step_leaves_the_state(tmp_path: Path) -> None:
    checkpoint_before_the_first_step(tmp_path)
    state = {**stepped(2), "extra": torch.ones(2)}
    expected = copy.deepcopy(list(state["optimizer"].state.values()))
    with (
        datastates.Checkpointer(tmp_path) as checkpoints,
        pytest.raises(ValueError, match="not in the checkpoint: extra"),
    ):
        checkpoints.restore(state)
    assert_same(list(state["optimizer"].state.values()), expected)


def test_state_of_no_parameter_is_forgotten_too(tmp_path: Path) -> None:
    def make(seed: int) -> dict[str, Any]:
        model = small_model(seed)
        return {"model": model, "optimizer": OddKeys(model.parameters())}

    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, make(1))
    state = make(2)
    train_step(state["model"], state["optimizer"])
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.restore(state)
    assert not state["optimizer"].state


def test_values_in_a_dict_that_has_taken_the_place_of_another_are_stored(tmp_path: Path) -> None:
    """As every load_state_dict() of an optimizer without tensors leaves it."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with datastates.Checkpointer(tmp_path) as checkpoints:
        for step, state in enumerate([{"count": 1}, {"count": 2}, {"total": 3}]):
            optimizer.state[weight] = state
            checkpoints.checkpoint(step, {"optimizer": optimizer}).durable.result(60)
            stored = datastates.open_checkpoint(tmp_path).encoded_python()["optimizer"]["state"]
            assert stored == {"group0.param0": state}
