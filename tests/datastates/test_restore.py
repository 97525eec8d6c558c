"""Restore: everything or nothing, in place, bit for bit; test_restore_damage.py has what was damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training import State, assert_equal, assert_same_bits, make_state, restore, save, small_model, snapshot

from datastates import Checkpointer, CheckpointError
from datastates.directory import read_manifest

# ---- whole ----


def test_the_newest_comes_back_bit_for_bit(tmp_path: Path) -> None:
    content = save(tmp_path, make_state(1), range(3))
    fresh = make_state(2)
    assert restore(tmp_path, fresh) == 3
    assert_equal(snapshot(fresh), content[2])


def test_without_a_checkpoint_the_first_step_is_zero_and_nothing_changes(tmp_path: Path) -> None:
    state = make_state(1)
    before = snapshot(state)
    assert restore(tmp_path / "none", state) == 0
    assert_equal(snapshot(state), before)


def test_a_checkpoint_from_before_the_first_step_comes_back(tmp_path: Path) -> None:
    state = make_state(1)
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, state)
    fresh = make_state(2)
    assert restore(tmp_path, fresh) == 1
    assert not fresh["optimizer"].state
    assert_equal(snapshot(fresh), snapshot(state))


def test_version_counters_see_a_restore_as_a_write(tmp_path: Path) -> None:
    save(tmp_path, make_state(1), range(1))
    fresh = make_state(2)
    loss = fresh["model"](torch.randn(4, 6)).sum()
    restore(tmp_path, fresh)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_large_state_in_many_chunks_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = [1, 3, 1000, 16_385, 70_001, 4096, 300_000]
    state: State = {"t": {str(i): torch.randn(n) for i, n in enumerate(sizes)}}
    with Checkpointer(tmp_path, chunk_bytes=64 << 10, arena_mb=1) as checkpoints:
        checkpoints.checkpoint(0, state)
    fresh: State = {"t": {str(i): torch.zeros(n) for i, n in enumerate(sizes)}}
    restore(tmp_path, fresh)
    for name, tensor in state["t"].items():
        assert_same_bits(fresh["t"][name], tensor, name)


# ---- targets of every kind ----


def values(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Values with every byte in use, NaNs among them."""
    torch.manual_seed(3)
    raw = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape) if dtype != torch.bool else raw.reshape(shape) > 127


DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.float4_e2m1fn_x2,
]


def test_every_dtype_and_shape_comes_back(tmp_path: Path) -> None:
    shapes = [(), (0,), (5,), (0, 3), (2, 3), (3, 0, 2), (2, 1, 3)]
    state = {f"{d}-{s}".replace("torch.", ""): values(s, d) for d in DTYPES for s in shapes}
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, state)
    fresh = {name: torch.zeros((*t.shape, t.itemsize), dtype=torch.uint8) for name, t in state.items()}
    fresh = {name: raw.view(state[name].dtype).reshape(state[name].shape) for name, raw in fresh.items()}
    restore(tmp_path, fresh)
    for name, tensor in state.items():
        assert_same_bits(fresh[name], tensor, name)


LAYOUTS: dict[str, Callable[[], torch.Tensor]] = {
    "contiguous": lambda: torch.zeros(4, 6),
    "transposed": lambda: torch.zeros(6, 4).t(),
    "a window": lambda: torch.zeros(9, 9)[2:6, 1:7],
    "every other": lambda: torch.zeros(8, 12)[::2, ::2],
    "a parameter": lambda: torch.nn.Parameter(torch.zeros(4, 6)),
    "a transposed parameter": lambda: torch.nn.Parameter(torch.zeros(6, 4).t()),
    "a tail": lambda: torch.zeros(25)[1:].view(4, 6),
}


@pytest.mark.parametrize("saved_as", LAYOUTS)
def test_strides_of_saved_and_live_tensors_do_not_matter(tmp_path: Path, saved_as: str) -> None:
    saved = LAYOUTS[saved_as]()
    with torch.no_grad():
        saved.copy_(torch.arange(24.0).reshape(4, 6))
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, {"t": saved})
    for name, make in LAYOUTS.items():
        live = make()
        base = live._base if live._base is not None else live
        pointer, strides = live.data_ptr(), live.stride()
        restore(tmp_path, {"t": live})
        assert (live.data_ptr(), live.stride()) == (pointer, strides)
        assert torch.equal(live, saved), name
        assert base.sum() == saved.sum(), f"{name}: something beside the target was written"


@pytest.mark.parametrize("view", [torch.Tensor.conj, lambda t: t.conj().imag], ids=["conjugate", "negative"])
def test_lazy_views_are_stored_and_restored_by_value(
    tmp_path: Path, view: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    saved = view(torch.tensor([1 + 2j, 3 - 4j]))
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, {"t": saved})
    for live in (view(torch.zeros(2, dtype=torch.complex64)), torch.zeros(2, dtype=saved.dtype)):
        restore(tmp_path, {"t": live})
        assert torch.equal(live, saved)
    again = torch.zeros(2, dtype=saved.dtype)
    with Checkpointer(tmp_path / "plain") as checkpoints:
        checkpoints.checkpoint(0, {"t": saved.resolve_conj().resolve_neg()})
    live = view(torch.zeros(2, dtype=torch.complex64))
    restore(tmp_path / "plain", {"t": live})
    restore(tmp_path / "plain", {"t": again})
    assert torch.equal(live, saved)
    assert torch.equal(again, saved)


# ---- misfits ----


def refused(directory: Path, state: State, said: str, **options: Any) -> None:
    """Restoring ``state`` is refused with a message like ``said``, and changes nothing."""
    before = snapshot(state)
    with Checkpointer(directory) as checkpoints:
        with pytest.raises(ValueError, match=said):
            checkpoints.restore(state, **options)
        assert_equal(snapshot(state), before)
        checkpoints.checkpoint(99, state).durable.result(60)  # still fit to be trained


def test_another_shape_is_refused_with_both(tmp_path: Path) -> None:
    save(tmp_path, make_state(1), range(1))
    other = make_state(2)
    other["model"][3].bias = torch.nn.Parameter(torch.zeros(7))
    refused(
        tmp_path, other, r"model\.3\.bias is float32\[7\] in the live state but float32\[3\] in .*step-00000000; build"
    )


def test_another_dtype_is_refused_with_both(tmp_path: Path) -> None:
    save(tmp_path, make_state(1), range(1))
    other = make_state(2)
    other["model"][1].running_mean = other["model"][1].running_mean.double()
    refused(tmp_path, other, r"model\.1\.running_mean is float64\[5\] in the live state but float32\[5\] in")


def test_a_name_that_the_checkpoint_lacks_is_refused(tmp_path: Path) -> None:
    save(tmp_path, make_state(1), range(1))
    other = {**make_state(2), "more": torch.ones(2)}
    refused(tmp_path, other, r"does not match the state: not in the checkpoint: more\. Pass strict=False")


def test_a_name_that_the_state_lacks_is_refused(tmp_path: Path) -> None:
    save(tmp_path, {**make_state(1), "more": torch.ones(2), "note": "x"}, range(1))
    refused(tmp_path, make_state(2), r"not in the live state: more, note\. Pass strict=False")


def test_many_names_are_counted_rather_than_listed(tmp_path: Path) -> None:
    save(tmp_path, make_state(1), range(1))
    state = {**make_state(2), "more": {str(i): torch.ones(1) for i in range(20)}}
    refused(tmp_path, state, r"more\.7 and 12 more")


def test_without_strictness_what_both_have_is_restored(tmp_path: Path) -> None:
    content = save(tmp_path, {**make_state(1), "more": torch.ones(2), "note": "x"}, range(1))
    state = {**make_state(2), "other": torch.full((2,), 5.0)}
    assert restore(tmp_path, state, strict=False) == 1
    assert_equal(snapshot(state), content[0])
    assert torch.equal(state["other"], torch.full((2,), 5.0))


def test_without_strictness_a_smaller_optimizer_takes_its_part(tmp_path: Path) -> None:
    content = save(tmp_path, make_state(1), range(1))
    model = small_model(2)
    optimizer = torch.optim.AdamW(model[0].parameters(), lr=0.5)
    assert restore(tmp_path, {"model": model, "optimizer": optimizer}, strict=False) == 1
    assert_same_bits(optimizer.state[model[0].weight]["exp_avg"], content[0]["optimizer.0.weight.exp_avg"])
    assert set(optimizer.state) == set(model[0].parameters())


def test_only_the_model_is_restored_where_only_the_model_is_asked_for(tmp_path: Path) -> None:
    content = save(tmp_path, make_state(1), range(1))
    state = make_state(2)
    before = snapshot(state)
    assert restore(tmp_path, state, only="model.*") == 1
    after = snapshot(state)
    for name, value in after.items():
        assert_equal({name: value}, {name: (content[0] if name.startswith("model.") else before)[name]})
    assert not state["optimizer"].state


def test_a_part_of_a_model_is_restored_by_pattern(tmp_path: Path) -> None:
    content = save(tmp_path, make_state(1), range(1))
    state = make_state(2)
    before = snapshot(state)
    restore(tmp_path, state, only=["model.0.*", "model.3.bias"])
    for name, value in snapshot(state).items():
        chosen = name.startswith("model.0.") or name == "model.3.bias"
        assert_equal({name: value}, {name: (content[0] if chosen else before)[name]})


def test_a_part_of_an_optimizer_creates_no_state_that_it_does_not_load(tmp_path: Path) -> None:
    content = save(tmp_path, make_state(1), range(1))
    state = make_state(2)
    restore(tmp_path, state, only="optimizer.state.0.*")
    assert set(state["optimizer"].state) == set(state["model"][0].parameters())
    weight = state["model"][0].weight
    assert_same_bits(state["optimizer"].state[weight]["exp_avg"], content[0]["optimizer.0.weight.exp_avg"])


@pytest.mark.parametrize("only", ["modle.*", "model.7.*", []])
def test_a_pattern_that_selects_nothing_is_refused(tmp_path: Path, only: Any) -> None:
    save(tmp_path, make_state(1), range(1))
    refused(tmp_path, make_state(2), "selects nothing that the state and .* both have", only=only)


def test_user_metadata_is_in_the_manifest(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpoints:
        path = checkpoints.checkpoint(5, {"a": 1}, metadata={"loss": 0.5, "tags": ["x"]}).durable.result(60)
    manifest = read_manifest(path)
    assert manifest.metadata == {"loss": 0.5, "tags": ["x"]}
    assert (manifest.step, manifest.num_ranks) == (5, 1)
    assert json.loads((path / "manifest.json").read_text())["metadata"] == manifest.metadata


def test_a_closed_checkpointer_refuses_to_restore(tmp_path: Path) -> None:
    checkpoints = Checkpointer(tmp_path)
    checkpoints.close()
    with pytest.raises(CheckpointError, match="closed; make a new one"):
        checkpoints.restore({})
