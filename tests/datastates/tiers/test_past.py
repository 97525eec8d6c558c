"""Tiers with a past: what is there and whole stays whole, whatever is sent and removed beside it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from datastates import Checkpointer, ReplicationError, Tier, open_checkpoint
from datastates.directory import CheckpointDirectory
from datastates.tiers.fetch import fetch
from datastates.tiers.pace import Pace
from datastates.tiers.replicator import TierLane
from datastates.tiers.shelf import WHERE
from datastates.tiers.stores import open_store
from datastates.tiers.stores.base import complete_steps

Open = Callable[..., Checkpointer]


def deltas(checkpoints: Checkpointer, *steps: int, seed: int = 0) -> list[str | None]:
    """Save a frozen tensor, and one that is of the step."""
    frozen = torch.randn(1 << 18, generator=torch.Generator().manual_seed(seed))
    return [
        checkpoints.checkpoint(step, {"frozen": frozen, "own": torch.full((999,), float(step))}).replicated.result(60)
        for step in steps
    ]


def assert_whole(tier: Tier, step: int, scratch: Path) -> None:
    scratch.mkdir()
    store = open_store(tier)
    path = fetch(store, CheckpointDirectory(scratch), step, pace=Pace(None, 0), threads=2, part_bytes=6 << 20)
    assert open_checkpoint(path).verify() == []
    assert open_checkpoint(path).read("own")[0] == step


def test_another_run_does_not_take_what_older_checkpoints_refer_to(tier: Tier, open_run: Open, tmp_path: Path) -> None:
    """Step 0 has expired, but step 2 lives on its data; a new run's step 0 must not stand in their place."""
    tier = Tier(**(vars(tier) | {"keep_last": 1}))
    with open_run(tier, full_every=50) as checkpoints:
        deltas(checkpoints, 0, 1, 2)
    assert complete_steps(open_store(tier).listing()) == [2]
    other = open_run(tier, directory=tmp_path / "other")
    taken = other.checkpoint(0, {"own": torch.full((999,), 0.0)})
    if open_store(tier).has_links:
        assert taken.replicated.result(60) is not None
    else:
        with pytest.raises(ReplicationError, match=r"step-00000000 has files that other checkpoints there refer to"):
            taken.replicated.result(60)
    other.close()
    assert_whole(tier, 2, tmp_path / "fetched")


@pytest.fixture
def referring(tmp_path: Path) -> Tier:
    """A tier in which checkpoints refer to each other's files."""
    return Tier(f"memory://{tmp_path.name}/run", keep_last=1, keep_every=100)


OWN, FROZEN = -9, 8192
"""Where a data file has a byte of what every step has of its own, and of what none has."""


def flipped(content: bytes, at: int) -> bytes:
    changed = bytearray(content)
    changed[at] ^= 1
    return bytes(changed)


def damage(tier: Tier, run: Path, step: int, at: int) -> None:
    """Flip a bit of a checkpoint's data, here and in the tier."""
    (file,) = (run / f"step-{step:08d}").glob("rank-00000.safetensors*")
    file.write_bytes(flipped(file.read_bytes(), at))
    store, name = open_store(tier), f"step-{step:08d}/{file.name}"
    store.put(name, flipped(store.get(name), at))


def empty() -> dict[str, torch.Tensor]:
    return {"frozen": torch.zeros(1 << 18), "own": torch.zeros(999)}


def test_retention_reads_anew_what_a_replaced_checkpoint_refers_to(
    referring: Tier, open_run: Open, tmp_path: Path
) -> None:
    """Step 100, on step 1, turns out damaged; the one that takes its place is on step 99, which then expires."""
    checkpoints = open_run(referring, full_every=50, keep_last=None)
    deltas(checkpoints, 1, 100)
    damage(referring, tmp_path / "run", 100, OWN)
    assert checkpoints.restore(empty()) == 2
    deltas(checkpoints, 99, 100, seed=1)
    checkpoints.close()
    assert complete_steps(open_store(referring).listing()) == [100]
    assert_whole(referring, 100, tmp_path / "fetched")


def test_nothing_is_shared_with_a_damaged_copy(referring: Tier, open_run: Open, tmp_path: Path) -> None:
    """After falling back, training gives the same values again; the tier passes the damaged step and takes the next."""
    for step in (4, 5):
        with open_run(referring, full_every=50, keep_last=None) as checkpoints:
            deltas(checkpoints, step)
    damage(referring, tmp_path / "run", 5, FROZEN)
    checkpoints = open_run(Tier(referring.url, every=2), full_every=50, keep_last=None)
    assert checkpoints.restore(empty()) == 5
    assert [url is not None for url in deltas(checkpoints, 5, 6)] == [False, True]
    assert checkpoints.stats().num_deltas == 1
    checkpoints.close()
    assert_whole(referring, 6, tmp_path / "fetched")


def test_what_was_damaged_on_its_way_is_asked_for_again(
    referring: Tier, open_run: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention hears nonsense for an answer, once: it must not take it for a checkpoint without references."""
    with open_run(referring, full_every=50) as checkpoints:
        deltas(checkpoints, 1, 100)
    real, garbled = TierLane._get, []

    def get(lane: TierLane, name: str) -> bytes:
        content: bytes = real(lane, name)
        if name == f"step-00000100/{WHERE}" and not garbled:
            garbled.append(name)
            return content[:-1]
        return content

    monkeypatch.setattr(TierLane, "_get", get)
    with open_run(referring, directory=tmp_path / "other", full_every=50) as checkpoints:
        deltas(checkpoints, 101)
    assert garbled
    assert_whole(referring, 100, tmp_path / "fetched")
