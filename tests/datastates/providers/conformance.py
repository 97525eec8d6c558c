"""What every state provider must do, whatever its kind of state: inherited by one test class per provider."""

import abc
import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training import assert_same_bits, bits

import datastates
from datastates.capture import collect, leaves, make_context


def assert_same(got: Any, expected: Any, name: str = "content") -> None:
    """Equal types, values and tensor bits at every depth."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(got, torch.Tensor), name
        for part, (now, then) in enumerate(zip(in_parts(got), in_parts(expected), strict=True)):
            assert_same_bits(now, then, f"{name}, part {part}")
        return
    assert type(got) is type(expected), name
    if isinstance(expected, dict):
        assert list(got) == list(expected), name
        for key, item in expected.items():
            assert_same(got[key], item, f"{name}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(got) == len(expected), name
        for i, item in enumerate(expected):
            assert_same(got[i], item, f"{name}.{i}")
    elif isinstance(expected, np.ndarray):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape), name
        assert_same(got.tobytes(), expected.tobytes(), name)
    elif isinstance(expected, bytes):
        is_same = got == expected  # outside the assert: to explain it, pytest would compare a megabyte byte by byte
        assert is_same, name
    else:
        assert got == expected, name


def in_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensor itself, or what a quantised one consists of, as torch's own functions give it."""
    if not tensor.is_quantized:
        return [tensor]
    if tensor.qscheme() == torch.per_tensor_affine:
        return [tensor.int_repr(), torch.tensor([tensor.q_scale(), tensor.q_zero_point()], dtype=torch.float64)]
    axis = torch.tensor(tensor.q_per_channel_axis())
    return [tensor.int_repr(), tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points(), axis]


def tensors_in(content: Any) -> list[torch.Tensor]:
    """Every tensor of a content, in order."""
    if isinstance(content, torch.Tensor):
        return [content]
    items = content.values() if isinstance(content, dict) else content if isinstance(content, (list, tuple)) else ()
    return [tensor for item in items for tensor in tensors_in(item)]


class ProviderConformance(abc.ABC):
    """Inherit, and say how to make, change and read one kind of state."""

    restores_in_place = True
    """Whether the tensors of :meth:`content` are the same objects before and after a restore."""

    @abc.abstractmethod
    def make(self, seed: int) -> dict[str, Any]:
        """A fresh state for a checkpointer; other seeds have other values."""

    @abc.abstractmethod
    def change(self, state: dict[str, Any]) -> None:
        """Change values as training would, in place."""

    @abc.abstractmethod
    def content(self, state: dict[str, Any]) -> Any:
        """Everything that counts, as nested Python values and the live tensors."""

    @pytest.fixture(scope="class")
    @classmethod
    def saved(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
        """A directory with a checkpoint of a state that has been trained a little, and what its content was."""
        suite, directory = cls(), tmp_path_factory.mktemp("saved")
        state = suite.make(seed=1)
        suite.change(state)
        expected = copy.deepcopy(suite.content(state))
        with datastates.Checkpointer(directory) as checkpoints:
            handle = checkpoints.checkpoint(7, state)
            checkpoints.gate()
            suite.change(state)  # what is written after the gate must not be in it
            handle.durable.result(timeout_s=60)
        return directory, expected

    def restore(self, directory: Path, state: dict[str, Any]) -> int:
        """Restore as a new process would."""
        with datastates.Checkpointer(directory) as checkpoints:
            return checkpoints.restore(state)

    def test_a_fresh_object_gets_every_bit(self, saved: tuple[Path, Any]) -> None:
        directory, expected = saved
        state = self.make(seed=2)
        assert self.restore(directory, state) == 8
        assert_same(self.content(state), expected)

    def test_the_states_of_this_suite_differ(self, saved: tuple[Path, Any]) -> None:
        """Else the other tests would prove nothing."""
        with pytest.raises(AssertionError):
            assert_same(self.content(self.make(seed=2)), saved[1])

    def test_a_used_object_gets_every_bit_back(self, saved: tuple[Path, Any]) -> None:
        directory, expected = saved
        state = self.make(seed=2)
        self.change(state)
        self.change(state)
        self.restore(directory, state)
        assert_same(self.content(state), expected)

    def test_restoring_in_place_keeps_the_identity_of_tensors(self, saved: tuple[Path, Any]) -> None:
        state = self.make(seed=2)
        self.change(state)
        before = [(id(t), t.data_ptr()) for t in tensors_in(self.content(state))]
        self.restore(saved[0], state)
        after = [(id(t), t.data_ptr()) for t in tensors_in(self.content(state))]
        assert (after == before) or not self.restores_in_place

    def test_training_goes_on_alike_after_a_restore(self, saved: tuple[Path, Any]) -> None:
        first, second = self.make(seed=2), self.make(seed=3)
        contents = []
        for state in (first, second):
            self.restore(saved[0], state)
            self.change(state)
            contents.append(copy.deepcopy(self.content(state)))
        assert_same(*contents)

    def test_a_checkpoint_changes_nothing(self, tmp_path: Path) -> None:
        state = self.make(seed=1)
        self.change(state)
        before = self.content(state)
        identities, expected = [id(t) for t in tensors_in(before)], copy.deepcopy(before)
        with datastates.Checkpointer(tmp_path / "runs") as checkpoints:
            checkpoints.checkpoint(0, state)
        assert_same(self.content(state), expected)
        if self.restores_in_place:
            assert [id(t) for t in tensors_in(self.content(state))] == identities

    def test_a_description_is_the_same_for_equal_objects(self) -> None:
        """Ranks compare descriptions, so nothing of a process may be in them."""
        first, second = self.make(seed=1), self.make(seed=2)
        self.change(first)
        self.change(second)
        assert self.describe(first) == self.describe(second)

    def describe(self, state: dict[str, Any]) -> list[Any]:
        context = make_context(state, rank=0)
        sections = [collect(name, value, context) for name, value, _, _ in leaves(state)]
        return [(section.name, section.held, section.aliases) for section in sections]

    def test_names_begin_with_the_key_of_the_state_and_are_unique(self) -> None:
        state = self.make(seed=1)
        self.change(state)
        context = make_context(state, rank=0)
        for name, value, _, _ in leaves(state):
            section = collect(name, value, context)
            names = [held.name.removeprefix("per_rank.0.") for held in section.held]
            assert len(set(names)) == len(names)
            assert all(found == name or found.startswith(f"{name}.") for found in names)
            assert len(section.held) == len(section.tensors)

    def test_python_values_are_json_and_cost_no_tensor_its_bits(self) -> None:
        state = self.make(seed=1)
        self.change(state)
        before = [bits(part) for t in tensors_in(self.content(state)) for part in in_parts(t)]
        context = make_context(state, rank=0)
        for name, value, _, _ in leaves(state):
            python = collect(name, value, context).python()
            assert json.loads(json.dumps(python)) == python
        if self.restores_in_place:
            assert [bits(part) for t in tensors_in(self.content(state)) for part in in_parts(t)] == before

    def test_a_guard_holds_until_the_state_is_another(self) -> None:
        state = self.make(seed=1)
        self.change(state)
        context = make_context(state, rank=0)
        for name, value, _, _ in leaves(state):
            section = collect(name, value, context)
            assert section.guard is None or section.guard()

    def test_stock_safetensors_sees_every_tensor(self, saved: tuple[Path, Any]) -> None:
        """Whatever the state is, its tensors are there for readers that know nothing of us."""
        reader = datastates.open_checkpoint(saved[0])
        stored = load_file(reader.path / "rank-00000.safetensors")
        assert set(stored) == set(reader.names())
        for name, tensor in stored.items():
            assert bits(tensor) == bits(reader.read(name)), name

    def test_the_python_state_is_decoded_without_the_live_objects(self, saved: tuple[Path, Any]) -> None:
        state = self.make(seed=2)
        sections = datastates.open_checkpoint(saved[0]).python()
        assert set(sections) <= {name for name, _, _, _ in leaves(state)}

    def test_checkpoints_in_a_row_hold_what_was_there_at_each_call(self, tmp_path: Path) -> None:
        """What is kept between checkpoints must not make the second one hold the first one's values."""
        state = self.make(seed=1)
        expected = []
        with datastates.Checkpointer(tmp_path / "runs", keep_last=None) as checkpoints:
            for step in range(3):
                self.change(state)
                expected.append(copy.deepcopy(self.content(state)))
                checkpoints.checkpoint(step, state)
                checkpoints.gate()
        for step in (2, 1, 0):
            fresh = self.make(seed=2)
            assert self.restore(tmp_path / "runs", fresh) == step + 1
            assert_same(self.content(fresh), expected[step])
            shutil.rmtree(tmp_path / "runs" / f"step-{step:08d}")
