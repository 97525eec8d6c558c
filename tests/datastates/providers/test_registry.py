"""Which provider serves a value: by the nearest type, then by what the value can do, else an error that helps."""

import collections
import collections.abc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import datastates
from datastates.providers import base, provider_for
from datastates.providers.module import ModuleProvider
from datastates.providers.stateful import StatefulProvider
from datastates.providers.tree import TreeProvider


@pytest.fixture(autouse=True)
def _registrations_end_with_the_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(base, "_registry", list(base._registry))
    monkeypatch.setattr(base, "_by_type", dict(base._by_type))
    return


class Base:
    pass


class Middle(Base):
    pass


class Leaf(Middle):
    pass


def serving(*types: type) -> datastates.StateProvider:
    """A provider of ``types`` that does nothing."""

    class Silent(datastates.StateProvider):
        handles: ClassVar[tuple[type, ...]] = types

        def collect(self, value: Any, out: Any) -> None:
            out.section.python = lambda: type(value).__name__

        def apply(self, value: Any, name: str, context: Any, saved: Any) -> Any:
            return value

    return Silent()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_most_specific_type_wins_whatever_the_order(order: tuple[int, int]) -> None:
    providers = [serving(Base), serving(Middle)]
    for index in order:
        datastates.register_provider(providers[index])
    assert provider_for(Base(), "x") is providers[0]
    assert provider_for(Middle(), "x") is providers[1]
    assert provider_for(Leaf(), "x") is providers[1]


def test_of_two_for_one_type_the_last_one_wins() -> None:
    for provider in (first := serving(Base), second := serving(Base)):
        datastates.register_provider(provider)
    assert provider_for(Middle(), "x") is second is not first


def test_an_abstract_class_that_only_isinstance_knows_comes_after_real_bases() -> None:
    class Sized(Base):
        def __len__(self) -> int:
            return 3

    datastates.register_provider(sized := serving(collections.abc.Sized))
    assert provider_for(Sized(), "x") is sized
    datastates.register_provider(real := serving(Base))
    datastates.register_provider(serving(collections.abc.Sized))
    assert provider_for(Sized(), "x") is real


def test_a_module_that_overrides_state_dict_is_still_a_module() -> None:
    class Custom(torch.nn.Linear):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return super().state_dict(*args, **kwargs)

        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return super().load_state_dict(*args, **kwargs)

    assert type(provider_for(Custom(1, 1), "x")) is ModuleProvider


class Queue(list[int]):
    """A list that says for itself how it is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.popped = 0

    def state_dict(self) -> dict[str, Any]:
        return {"items": list(self), "popped": self.popped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self[:] = state["items"]
        self.popped = state["popped"]


class Table(dict[str, Any]):
    """A dict that says for itself how it is saved, and that holds a module nobody is to look for."""

    def state_dict(self) -> dict[str, Any]:
        return {"hidden": self["layer"].weight.item()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self["layer"].weight.data.fill_(state["hidden"])


def test_a_plain_type_s_subclass_with_state_dict_is_asked_for_it(tmp_path: Path) -> None:
    queue, table = Queue(), Table(layer=torch.nn.Linear(1, 1, bias=False))
    queue.extend([1, 2])
    queue.popped = 3
    with datastates.Checkpointer(tmp_path) as checkpoints:
        handle = checkpoints.checkpoint(0, {"queue": queue, "nested": {"table": table}})
        assert not datastates.directory.read_manifest(handle.durable.result(60)).tensors
    state: dict[str, Any] = {"queue": Queue(), "nested": {"table": Table(layer=torch.nn.Linear(1, 1, bias=False))}}
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.restore(state)
    assert (list(state["queue"]), state["queue"].popped) == ([1, 2], 3)
    assert torch.equal(state["nested"]["table"]["layer"].weight, table["layer"].weight)


def test_a_plain_type_s_subclass_without_either_is_refused_by_name(tmp_path: Path) -> None:
    class Step(int):
        pass

    assert type(provider_for(Step(3), "x")) is TreeProvider
    with (
        datastates.Checkpointer(tmp_path) as checkpoints,
        pytest.raises(TypeError, match=r"^step is a .*Step.*no typed"),
    ):
        checkpoints.checkpoint(0, {"step": Step(3)})


@pytest.mark.parametrize("nested", [False, True])
def test_a_dict_subclass_with_a_provider_is_not_taken_apart(tmp_path: Path, nested: bool) -> None:
    class Pool(dict[str, Any]):
        pass

    pool = Pool(layer=torch.nn.Linear(2, 2))
    datastates.register_provider(serving(Pool))
    state = {"deep": {"pool": pool}} if nested else {"pool": pool}
    with datastates.Checkpointer(tmp_path) as checkpoints:
        handle = checkpoints.checkpoint(0, state)
        assert not datastates.directory.read_manifest(handle.durable.result(60)).tensors


def test_a_dict_subclass_without_one_is_taken_apart(tmp_path: Path) -> None:
    state = {"nets": collections.OrderedDict(first=torch.nn.Linear(2, 2), second=torch.nn.Linear(2, 2))}
    with datastates.Checkpointer(tmp_path) as checkpoints:
        handle = checkpoints.checkpoint(0, state)
        names = datastates.directory.read_manifest(handle.durable.result(60)).tensors
    assert set(names) == {f"nets.{net}.{name}" for net in ("first", "second") for name in ("weight", "bias")}


def test_an_unknown_type_is_an_error_that_says_how_to_register(tmp_path: Path) -> None:
    with datastates.Checkpointer(tmp_path) as checkpoints:
        with pytest.raises(TypeError, match=r"state\['odd'\] is a .*Base, which no state provider handles") as caught:
            checkpoints.checkpoint(0, {"odd": Base()})
        assert "datastates.register_provider(...)" in str(caught.value)
        assert "state_dict() and load_state_dict()" in str(caught.value)
        datastates.register_provider(serving(Base))
        checkpoints.checkpoint(0, {"odd": Base()}).durable.result(60)


def test_what_has_only_one_of_both_methods_is_not_stateful() -> None:
    class Half:
        def state_dict(self) -> dict[str, Any]:
            return {}

    assert not StatefulProvider().accepts(Half())
    with pytest.raises(TypeError, match="no state provider handles"):
        provider_for(Half(), "x")
