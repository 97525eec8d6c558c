"""The gate: training may overtake a checkpoint, but never write to what has not been copied.

Storage is held (``tests/support/held_storage.py``) while training goes on, with an arena that is smaller than the
state; so whoever wrote without waiting would leave other bytes in the file than the clones taken at the call.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from held_storage import (
    SMALL_ARENA,
    HeldStorage,
    assert_stored,
    backward,
    cloned_module,
    cloned_optimizer,
    train,
    wide_model,
)
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from datastates import (
    ArenaExhaustedError,
    Checkpoint,
    Checkpointer,
    CheckpointSkipped,
    MutationError,
)

Open = Callable[..., Checkpointer]
Tensors = dict[str, Tensor]


def assert_changed(before: Tensors, now: Tensors) -> None:
    """What the test compares with would differ if the gate had let the optimizer through."""
    assert all(not torch.equal(before[name], now[name]) for name in before if name.endswith("weight"))


def within(seconds: float, storage: HeldStorage, act: Callable[[], Any]) -> Any:
    """``act()``, which must return although storage stands still."""
    with ThreadPoolExecutor(1) as pool:
        acting = pool.submit(act)
        try:
            return acting.result(seconds)
        except TimeoutError:
            storage.release()  # or the thread would never end
            raise


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, foreach=False),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd-momentum-fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_a_step_waits_until_what_it_writes_has_been_copied(
    make: Callable[[Any], torch.optim.Optimizer], open_checkpoints: Open, storage: HeldStorage
) -> None:
    model = wide_model()
    optimizer = make(model.parameters())
    train(model, optimizer)
    checkpoints = open_checkpoints(**SMALL_ARENA)
    expected = cloned_module(model) | cloned_optimizer(optimizer, model)

    storage.hold()
    checkpoint = checkpoints.checkpoint(0, {"model": model, "optimizer": optimizer})
    train(model, optimizer, seed=2)
    storage.release()

    assert storage.gates == [(0, False)]
    assert_stored(checkpoint, expected)
    assert_changed(expected, cloned_module(model) | cloned_optimizer(optimizer, model))
    assert checkpoints.stats().gate_wait_s_total > 0


def test_a_step_does_not_wait_for_another_optimizers_state(open_checkpoints: Open, storage: HeldStorage) -> None:
    """A's state fits into the arena in front of B's, which does not: A steps while storage stands still."""
    small, wide = wide_model(0, width=64), wide_model(1)
    of_small, of_wide = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (small, wide))
    state = {"small": small, "of_small": of_small, "wide": wide, "of_wide": of_wide}
    checkpoints = open_checkpoints(**SMALL_ARENA)
    expected = cloned_module(small, "small") | cloned_module(wide, "wide")

    storage.hold(opens_at_gate=False)
    checkpoint = checkpoints.checkpoint(0, state)
    within(10, storage, lambda: train(small, of_small))
    assert not checkpoint.safe_to_mutate.done()
    storage.hold()
    train(wide, of_wide)
    storage.release()

    assert storage.gates == [(0, False), (0, False)]
    assert_stored(checkpoint, expected)
    assert_changed(expected, cloned_module(small, "small") | cloned_module(wide, "wide"))


def test_a_step_of_an_unrelated_optimizer_does_not_wait(open_checkpoints: Open, storage: HeldStorage) -> None:
    model, unrelated = wide_model(), wide_model(1, width=8)
    optimizer, other = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, unrelated))
    checkpoints = open_checkpoints(**SMALL_ARENA)
    storage.hold(opens_at_gate=False)
    checkpoint = checkpoints.checkpoint(0, {"model": model, "optimizer": optimizer})
    within(10, storage, lambda: train(unrelated, other))
    assert not checkpoint.safe_to_mutate.done()
    storage.release()
    assert_stored(checkpoint, cloned_module(model))


@pytest.mark.parametrize("params", ["all", "a view of one"])
def test_an_optimizer_outside_the_state_waits_for_memory_it_shares(
    params: str, open_checkpoints: Open, storage: HeldStorage
) -> None:
    model = wide_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    view = model[2].weight.detach()[5:9].requires_grad_()
    outside = torch.optim.AdamW(model.parameters() if params == "all" else [view])
    checkpoints = open_checkpoints(**SMALL_ARENA)
    expected = cloned_module(model)

    storage.hold()
    checkpoint = checkpoints.checkpoint(0, {"model": model, "optimizer": optimizer})
    view.grad = torch.ones_like(view)
    backward(model)
    outside.step()
    storage.release()

    assert storage.gates[0] == (0, False)
    assert_stored(checkpoint, expected)
    assert not torch.equal(model[2].weight, expected["model.2.weight"])


def test_two_optimizers_of_the_state_that_share_parameters_wait_for_each_other(
    open_checkpoints: Open, storage: HeldStorage
) -> None:
    model = wide_model()
    first, second = torch.optim.AdamW(model.parameters()), torch.optim.SGD(model.parameters(), lr=0.1)
    checkpoints = open_checkpoints(**SMALL_ARENA)
    expected = cloned_module(model)
    storage.hold()
    checkpoint = checkpoints.checkpoint(0, {"model": model, "first": first, "second": second})
    train(model, first)
    storage.release()
    assert storage.gates == [(0, False)]
    assert_stored(checkpoint, expected)


def test_a_checkpoint_is_gated_as_it_was_taken_whatever_was_taken_since(
    open_checkpoints: Open, storage: HeldStorage
) -> None:
    """Every step saves one network, every tenth saves both: the gate of the second must outlive the smaller state."""
    small, wide = wide_model(0, width=16), wide_model(1)
    of_small, of_wide = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (small, wide))
    checkpoints = open_checkpoints(**SMALL_ARENA)
    expected = cloned_module(small, "small") | cloned_module(wide, "wide")

    storage.hold()
    both = checkpoints.checkpoint(0, {"small": small, "of_small": of_small, "wide": wide, "of_wide": of_wide})
    one = checkpoints.checkpoint(1, {"small": small, "of_small": of_small})
    train(wide, of_wide)
    storage.release()

    assert storage.gates[0] == (0, False)
    assert_stored(both, expected)
    assert_stored(one, cloned_module(small, "small"))


def test_clipped_gradients_and_schedules_are_no_mutation(open_checkpoints: Open, storage: HeldStorage) -> None:
    model = wide_model()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    state = {"model": model, "optimizer": optimizer, "schedule": schedule}
    checkpoints = open_checkpoints(**SMALL_ARENA, keep_last=None, verify_immutability="full")
    taken: list[tuple[Checkpoint, Tensors]] = []
    for step in range(4):
        optimizer.zero_grad()
        backward(model, step)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        schedule.step()
        storage.hold()
        expected = cloned_module(model) | cloned_optimizer(optimizer, model)
        taken.append((checkpoints.checkpoint(step, state), expected))
    storage.release()
    for checkpoint, expected in taken:
        assert_stored(checkpoint, expected)


# ---- what no optimizer writes is copied at the call


def averaged(model: nn.Module) -> AveragedModel:
    return AveragedModel(model, avg_fn=lambda mean, value, count: 0.5 * mean + 0.5 * value)


def test_an_average_updated_at_once_is_stored_as_it_was(open_checkpoints: Open, storage: HeldStorage) -> None:
    model = wide_model()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    ema = averaged(wide_model(7))
    checkpoints = open_checkpoints(**SMALL_ARENA)
    expected = cloned_module(model) | cloned_optimizer(optimizer, model) | cloned_module(ema, "ema")
    storage.hold(opens_at_gate=False)
    checkpoint = checkpoints.checkpoint(0, {"model": model, "optimizer": optimizer, "ema": ema})
    ema.update_parameters(model)
    assert not checkpoint.safe_to_mutate.done()
    storage.release()
    assert_stored(checkpoint, expected)
    assert_changed({k: v for k, v in expected.items() if k.startswith("ema.")}, cloned_module(ema, "ema"))


def lazy_average(open_checkpoints: Open) -> tuple[Checkpointer, dict[str, Any], Tensors]:
    """A checkpointer, and a state whose average nobody but the user's own gate protects, with the average's clones."""
    model = wide_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ema = averaged(wide_model(7))
    checkpoints = open_checkpoints(**SMALL_ARENA, lazy=["ema.*"])
    return checkpoints, {"model": model, "optimizer": optimizer, "ema": ema}, cloned_module(ema, "ema")


def test_an_average_declared_lazy_is_safe_behind_the_gate(open_checkpoints: Open, storage: HeldStorage) -> None:
    checkpoints, state, expected = lazy_average(open_checkpoints)
    expected |= cloned_module(state["model"])
    storage.hold()
    checkpoint = checkpoints.checkpoint(0, state)
    checkpoints.gate()
    storage.release()
    state["ema"].update_parameters(state["model"])
    assert storage.gates == [(0, False)]
    assert_stored(checkpoint, expected)


def test_an_average_declared_lazy_may_follow_a_step_of_any_optimizer(
    open_checkpoints: Open, storage: HeldStorage
) -> None:
    checkpoints, state, expected = lazy_average(open_checkpoints)
    expected |= cloned_module(state["model"])
    outside = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    storage.hold()
    checkpoint = checkpoints.checkpoint(0, state)
    outside.step()
    storage.release()
    state["ema"].update_parameters(state["model"])
    assert storage.gates == [(0, False)]
    assert_stored(checkpoint, expected)


def test_an_average_declared_lazy_and_updated_too_early_is_never_published(
    open_checkpoints: Open, storage: HeldStorage
) -> None:
    checkpoints, state, _ = lazy_average(open_checkpoints)
    storage.hold()
    checkpoint = checkpoints.checkpoint(0, state)
    with torch.no_grad():
        state["ema"].module[2].weight.mul_(2)
    storage.release()
    with pytest.raises(MutationError, match=r"step 0 on rank 0: ema\.module\.2\.weight changed"):
        checkpoint.durable.result(60)
    assert checkpoints.steps() == []


def forward_changes(model: nn.Module, buffers: list[str], open_checkpoints: Open, storage: HeldStorage) -> None:
    """``forward`` in the window changes ``buffers``; the file has them, and the parameters, as they were."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpoints = open_checkpoints(**SMALL_ARENA, verify_immutability="full")
    expected = cloned_module(model)
    storage.hold()
    checkpoint = checkpoints.checkpoint(0, {"model": model, "optimizer": optimizer})
    train(model, optimizer, seed=5)
    storage.release()
    assert storage.gates == [(0, False)]
    assert_stored(checkpoint, expected)
    now = cloned_module(model)
    assert not [name for name in buffers if torch.equal(expected[name], now[name])]


def test_batch_norm_statistics_are_stored_as_they_were(open_checkpoints: Open, storage: HeldStorage) -> None:
    model = nn.Sequential(wide_model(), nn.BatchNorm1d(384))
    forward_changes(
        model, ["model.1.running_mean", "model.1.running_var", "model.1.num_batches_tracked"], open_checkpoints, storage
    )


@pytest.mark.filterwarnings("ignore:.*weight_norm.*|.*spectral_norm.*:FutureWarning")
def test_spectral_norm_of_the_old_kind(open_checkpoints: Open, storage: HeldStorage) -> None:
    model = wide_model()
    torch.nn.utils.spectral_norm(model[0])
    forward_changes(model, ["model.0.weight_u", "model.0.weight_v"], open_checkpoints, storage)


def test_spectral_norm_as_a_parametrization(open_checkpoints: Open, storage: HeldStorage) -> None:
    model = wide_model()
    torch.nn.utils.parametrizations.spectral_norm(model[0], n_power_iterations=1)
    vectors = [f"model.0.parametrizations.weight.0._{v}" for v in "uv"]
    forward_changes(model, vectors, open_checkpoints, storage)


# ---- optimizers with a protocol of their own


def test_lbfgs_with_its_closure(open_checkpoints: Open, storage: HeldStorage) -> None:
    """Its state grows, and holds tensors in lists; three checkpoints in a row, each overtaken by a step."""
    model = wide_model(width=300)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        return backward(model)

    checkpoints = open_checkpoints(**SMALL_ARENA, keep_last=None)
    taken = []
    for step in range(3):
        optimizer.step(closure)
        expected = cloned_module(model) | cloned_optimizer(optimizer, model)
        storage.hold()
        taken.append((checkpoints.checkpoint(step, {"model": model, "optimizer": optimizer}), expected))
    optimizer.step(closure)
    storage.release()
    assert [step for step, copied in storage.gates if not copied] != []
    for checkpoint, expected in taken:
        assert_stored(checkpoint, expected)


def test_a_grad_scaler_steps_through_the_gate(open_checkpoints: Open, storage: HeldStorage) -> None:
    model = wide_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    checkpoints = open_checkpoints(**SMALL_ARENA)
    expected = cloned_module(model)
    storage.hold()
    checkpoint = checkpoints.checkpoint(0, {"model": model, "optimizer": optimizer, "scaler": scaler})
    scaler.scale(model(torch.ones(2, 384)).square().mean()).backward()
    scaler.step(optimizer)
    scaler.update()
    storage.release()
    assert storage.gates == [(0, False)]
    assert_stored(checkpoint, expected)
    assert scaler.get_scale() == 16.0
    assert checkpoints.restore({"model": model, "optimizer": optimizer, "scaler": scaler}) == 1
    assert scaler.get_scale() == 8.0


# ---- the arena


@pytest.mark.parametrize("arena_mb", [1, 4, 9], ids=["quarter", "one", "two"])
def test_checkpoints_in_flight_never_touch_each_others_bytes(
    arena_mb: int, open_checkpoints: Open, storage: HeldStorage
) -> None:
    """3.5 MB of state, a checkpoint at every step; storage stands still until a gate is reached, again and again."""
    model = wide_model()
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoints = open_checkpoints(arena_mb=arena_mb, chunk_bytes=64 << 10, keep_last=None)
    taken = []
    for step in range(8):
        train(model, optimizer, seed=step)
        expected = cloned_module(model) | cloned_optimizer(optimizer, model)
        storage.hold()
        taken.append((checkpoints.checkpoint(step, {"model": model, "optimizer": optimizer}), expected))
    storage.release()
    for checkpoint, expected in taken:
        assert_stored(checkpoint, expected)
    assert checkpoints.steps() == list(range(8))


def test_with_a_large_arena_two_checkpoints_are_taken_although_nothing_can_be_written(
    open_checkpoints: Open, storage: HeldStorage
) -> None:
    model = wide_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpoints = open_checkpoints(arena_mb=4, chunk_bytes=64 << 10)
    storage.hold(opens_at_gate=False)
    taken = []
    for step in range(2):
        taken.append((checkpoints.checkpoint(step, {"model": model, "optimizer": optimizer}), cloned_module(model)))
        within(10, storage, lambda: train(model, optimizer))
    assert [c.safe_to_mutate.exception(30) for c, _ in taken] == [None, None]
    assert [c.written.done() for c, _ in taken] == [False, False]
    storage.release()
    for checkpoint, expected in taken:
        assert_stored(checkpoint, expected)


def full_arena(policy: str, open_checkpoints: Open, storage: HeldStorage) -> tuple[Checkpointer, Any, Checkpoint]:
    """A checkpointer whose arena one checkpoint (of step 0) has filled, while storage stands still."""
    model = wide_model()
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    checkpoints = open_checkpoints(arena_mb=2, chunk_bytes=64 << 10, policy=policy)
    storage.hold(opens_at_gate=False)
    first = checkpoints.checkpoint(0, state)
    assert first.safe_to_mutate.exception(30) is None
    return checkpoints, state, first


def test_policy_skip(open_checkpoints: Open, storage: HeldStorage) -> None:
    checkpoints, state, first = full_arena("skip", open_checkpoints, storage)
    expected = cloned_module(state["model"])
    skipped = checkpoints.checkpoint(1, state)
    for future in (skipped.safe_to_mutate, skipped.written, skipped.durable):
        with pytest.raises(CheckpointSkipped, match="no arena room on rank 0"):
            future.result(30)
    within(10, storage, lambda: train(state["model"], state["optimizer"]))
    storage.release()
    assert_stored(first, expected)
    third = cloned_module(state["model"])
    assert_stored(checkpoints.checkpoint(2, state), third)
    stats = checkpoints.stats()
    assert (stats.num_begun, stats.num_durable, stats.num_skipped, stats.num_failed) == (3, 2, 1, 0)
    assert checkpoints.steps() == [0, 2]


def test_policy_error(open_checkpoints: Open, storage: HeldStorage) -> None:
    checkpoints, state, first = full_arena("error", open_checkpoints, storage)
    expected = cloned_module(state["model"])
    with pytest.raises(ArenaExhaustedError, match="no room for 1 MB"):
        checkpoints.checkpoint(1, state)
    storage.release()
    assert_stored(first, expected)
    assert_stored(checkpoints.checkpoint(1, state), expected)
    assert checkpoints.stats().num_begun == 2
