"""Damage: wherever it is, all of it leads to the newest whole checkpoint, and the report says what was hit."""

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from training import State, assert_equal, bits, make_state, restore, save, snapshot, train

from datastates import Checkpointer, RestoreError
from datastates.directory import read_manifest


def flip(path: Path, position: int) -> None:
    """Invert one bit of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def flip_in_weight(checkpoint: Path) -> None:
    shard = read_manifest(checkpoint).tensors["model.0.weight"].shards[0]
    flip(checkpoint / "rank-00000.safetensors", shard.begin + 5)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "payload": (
        flip_in_weight,
        r"rank-00000\.safetensors: checksum mismatch in bytes \[\d+, \d+\), which hold .*model\.0\.weight",
    ),
    "last byte": (lambda c: flip(c / "rank-00000.safetensors", -1), r"rank-00000\.safetensors: checksum mismatch"),
    "header": (lambda c: flip(c / "rank-00000.safetensors", 100), r"rank-00000\.safetensors: the header's checksum"),
    "header length": (
        lambda c: flip(c / "rank-00000.safetensors", 0),
        r"rank-00000\.safetensors: the header's checksum",
    ),
    "objects": (lambda c: flip(c / "rank-00000.objects.json", 30), r"rank-00000\.objects\.json: the checksum does not"),
    "manifest": (lambda c: flip(c / "manifest.json", 200), r"manifest\.json: the manifest's own SHA-256"),
    "no manifest": (lambda c: (c / "manifest.json").unlink(), r"No such file or directory: .*manifest\.json"),
    "no data file": (lambda c: (c / "rank-00000.safetensors").unlink(), r"No such file .*rank-00000\.safetensors"),
    "no objects file": (
        lambda c: (c / "rank-00000.objects.json").unlink(),
        r"No such file .*rank-00000\.objects\.json",
    ),
    "data file cut": (
        lambda c: (c / "rank-00000.safetensors").write_bytes((c / "rank-00000.safetensors").read_bytes()[:-1]),
        r"rank-00000\.safetensors: \d+ bytes, expected \d+: truncated or altered",
    ),
    "data file grown": (
        lambda c: (c / "rank-00000.safetensors").write_bytes((c / "rank-00000.safetensors").read_bytes() + b"\0"),
        r"rank-00000\.safetensors: \d+ bytes, expected \d+: truncated or altered",
    ),
    "objects cut": (
        lambda c: (c / "rank-00000.objects.json").write_bytes(b""),
        r"rank-00000\.objects\.json: 0 bytes, expected \d+",
    ),
    "empty directory": (lambda c: [path.unlink() for path in c.iterdir()], "No such file"),
    "a directory for a file": (
        lambda c: ((c / "manifest.json").unlink(), (c / "manifest.json").mkdir()),
        r"Is a directory: .*manifest\.json",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_of_every_kind_leads_to_the_older_checkpoint(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    content = save(tmp_path, make_state(1), range(2))
    damage, said = DAMAGE[kind]
    damage(tmp_path / "step-00000001")
    fresh = make_state(2)
    with caplog.at_level(logging.WARNING):
        assert restore(tmp_path, fresh) == 1
    assert_equal(snapshot(fresh), content[0])
    (record,) = caplog.records
    told = "checkpoint of step 1 is damaged, falling back to an older one: "
    assert re.match(f"{told}.*{said}", record.getMessage()), record.getMessage()


def test_a_fallback_from_with_to_without_optimizer_state_leaves_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = make_state(1)
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, state).durable.result(60)
        before_first_step = snapshot(state)
        checkpoints.gate()
        train(state)
        checkpoints.checkpoint(1, state)
    flip_in_weight(tmp_path / "step-00000001")
    fresh = make_state(2)
    assert restore(tmp_path, fresh) == 1
    assert "falling back" in caplog.text
    assert not fresh["optimizer"].state
    assert_equal(snapshot(fresh), before_first_step)


def test_training_goes_on_over_a_damaged_step_which_is_kept_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, make_state(1), range(3))
    flip_in_weight(tmp_path / "step-00000002")
    state = make_state(2)
    with Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.restore(state) == 2
        checkpoints.checkpoint(2, state).durable.result(60)
    assert "falling back" in caplog.text
    assert len(list(tmp_path.glob("damaged-step-00000002-*"))) == 1
    fresh = make_state(3)
    assert restore(tmp_path, fresh) == 3
    assert_equal(snapshot(fresh), snapshot(state))


def test_retention_does_not_count_damaged_steps_as_checkpoints_to_go_back_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, make_state(1), range(4))
    for step in (2, 3):
        flip_in_weight(tmp_path / f"step-{step:08d}")
    state = make_state(2)
    with Checkpointer(tmp_path, keep_last=1) as checkpoints:
        assert checkpoints.restore(state) == 2
        train(state)
        checkpoints.checkpoint(2, state).durable.result(60)
    assert "falling back" in caplog.text
    fresh = make_state(3)
    assert restore(tmp_path, fresh) == 3
    assert_equal(snapshot(fresh), snapshot(state))


def test_latest_passes_over_what_is_visibly_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, make_state(1), range(2))
    (tmp_path / "step-00000001" / "rank-00000.objects.json").unlink()
    with Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.latest() == tmp_path / "step-00000000"
        assert checkpoints.steps() == [0, 1]
        shutil.rmtree(tmp_path / "step-00000000")
        assert checkpoints.latest() is None
    assert "passed over" in caplog.text


def test_if_all_are_damaged_nothing_may_be_saved_until_one_is_restored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = save(tmp_path, make_state(1), range(2))
    good = shutil.copytree(tmp_path / "step-00000001", tmp_path / "backup")
    for step in range(2):
        flip_in_weight(tmp_path / f"step-{step:08d}")
    state = make_state(2)
    with Checkpointer(tmp_path) as checkpoints:
        with pytest.raises(
            RestoreError, match=r"half overwritten: step 1: .*model\.0\.weight.*; step 0: .*safetensors"
        ):
            checkpoints.restore(state)
        with pytest.raises(RestoreError, match=r"unusable since a failed restore: .*step 1: "):
            checkpoints.checkpoint(2, state)
        shutil.rmtree(tmp_path / "step-00000001")
        good.rename(tmp_path / "step-00000001")
        checkpoints.restore(state, only="model.*")
        with pytest.raises(RestoreError, match="unusable"):  # a part does not mend the rest
            checkpoints.checkpoint(2, state)
        assert checkpoints.restore(state) == 2
        assert_equal(snapshot(state), content[1])
        checkpoints.checkpoint(2, state).durable.result(60)
    assert caplog.text.count("falling back") == 2


def test_an_empty_directory_does_not_mend_a_failed_restore(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, make_state(1), range(1))
    flip_in_weight(tmp_path / "step-00000000")
    state = make_state(2)
    with Checkpointer(tmp_path) as checkpoints:
        with pytest.raises(RestoreError):
            checkpoints.restore(state)
        shutil.rmtree(tmp_path / "step-00000000")
        assert checkpoints.restore(state) == 0
        with pytest.raises(RestoreError, match="unusable"):
            checkpoints.checkpoint(0, state)
    assert "falling back" in caplog.text


class Fragile:
    """Refuses what it is given."""

    def state_dict(self) -> dict[str, int]:
        return {"a": 1}

    def load_state_dict(self, state: dict[str, int]) -> None:
        raise KeyError("b")


def test_an_object_that_refuses_its_state_makes_the_live_state_unusable(tmp_path: Path) -> None:
    save(tmp_path, {**make_state(1), "fragile": Fragile()}, range(1))
    state = {**make_state(2), "fragile": Fragile()}
    with Checkpointer(tmp_path) as checkpoints:
        with pytest.raises(RestoreError, match=r"not all Python values.*KeyError: 'b'"):
            checkpoints.restore(state)
        with pytest.raises(RestoreError, match="unusable"):
            checkpoints.checkpoint(1, state)


def test_a_damaged_part_that_is_not_asked_for_does_no_harm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state: State = {"a": torch.randn(100_000), "b": torch.randn(100_000)}
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, state)
    shard = read_manifest(tmp_path / "step-00000000").tensors["b"].shards[0]
    flip(tmp_path / "step-00000000" / "rank-00000.safetensors", shard.begin)
    fresh: State = {"a": torch.zeros(100_000), "b": torch.zeros(100_000)}
    assert restore(tmp_path, fresh, only="a") == 1
    assert bits(fresh["a"]) == bits(state["a"])
    assert not fresh["b"].any()


def test_an_older_checkpoint_that_does_not_fit_does_not_hide_that_values_have_changed(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, {"small": torch.ones(4)})
        checkpoints.checkpoint(1, {"large": torch.ones(1000), "small": torch.ones(4)})
    flip(tmp_path / "step-00000001" / "rank-00000.safetensors", -1)
    live = {"large": torch.zeros(1000), "small": torch.zeros(4)}
    with Checkpointer(tmp_path) as checkpoints:
        with pytest.raises(RestoreError, match=r"half overwritten and must not be trained \(ValueError: .*large"):
            checkpoints.restore(live)
        with pytest.raises(RestoreError, match=r"unusable since a failed restore"):
            checkpoints.checkpoint(2, live)


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("no device"), KeyboardInterrupt()])
def test_whatever_ends_a_restore_half_way_keeps_the_state_from_being_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, {"a": torch.ones(4)})

    def interrupted(*_: object, **__: object) -> int:
        raise error

    live = {"a": torch.zeros(4)}
    with Checkpointer(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr("datastates.restore.load", interrupted)
            expected = RestoreError if isinstance(error, Exception) else KeyboardInterrupt
            with pytest.raises(expected):
                checkpoints.restore(live)
        with pytest.raises(RestoreError, match=r"unusable since a failed restore"):
            checkpoints.checkpoint(1, live)
        assert checkpoints.restore(live) == 1
        checkpoints.checkpoint(1, live).durable.result(60)


def test_an_expanded_tensor_is_refused_before_any_value_changes(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, {"first": torch.ones(3), "mask": torch.ones(1).expand(5)})
        live = {"first": torch.zeros(3), "mask": torch.zeros(1).expand(5)}
        with pytest.raises(ValueError, match=r"mask is an expanded tensor, whose elements share memory"):
            checkpoints.restore(live)
    assert live["first"].tolist() == [0, 0, 0]
