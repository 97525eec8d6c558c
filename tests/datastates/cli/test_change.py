"""repair and prune: nothing is lost, nothing is overwritten, and a running job is left alone."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from datastates import Checkpointer, DirectoryBusyError, open_checkpoint
from datastates.directory import CheckpointDirectory

Ckpt = Callable[..., tuple[int, str]]
CkptJson = Callable[..., tuple[int, Any]]
Damage = Callable[[int], Path]


def steps(directory: Path) -> list[int]:
    return CheckpointDirectory(directory).steps()


def test_repair_moves_damage_aside_and_removes_dead_attempts(
    run_directory: Path, ckpt: Ckpt, ckpt_json: CkptJson, damage_table: Damage
) -> None:
    damaged = damage_table(2).read_bytes()
    dead = run_directory / ".tmp-step-00000005-0123abcd"
    dead.mkdir()
    before = sorted(run_directory.iterdir())
    status, text = ckpt("repair", run_directory, "--dry-run")
    assert status == 2
    assert "step 2 would be moved aside" in text
    assert "no other copy was given; --from names one" in text
    assert f"1 dead attempts would be removed: {dead.name}" in text
    assert sorted(run_directory.iterdir()) == before
    status, report = ckpt_json("repair", run_directory)
    (item,) = report["moved_aside"]
    assert (status, item["step"], report["whole"]) == (2, 2, [1, 4])
    assert (Path(item["kept_as"]) / "rank-00000.safetensors").read_bytes() == damaged
    assert steps(run_directory) == [1, 4]
    assert not dead.exists()
    assert ckpt("repair", run_directory) == (0, "2 checkpoints are whole\n")


def copy_of(run_directory: Path) -> Path:
    return Path(shutil.copytree(run_directory, run_directory.with_name("copy")))


def bit_flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("file", ["rank-00000.safetensors", "rank-00000.objects.json", "manifest.json"])
@pytest.mark.parametrize("harm", [bit_flipped, cut, Path.unlink])
def test_repair_takes_the_bytes_that_are_whole_from_another_copy(
    run_directory: Path, ckpt: Ckpt, file: str, harm: Callable[[Path], None]
) -> None:
    copy = copy_of(run_directory)
    step = run_directory / "step-00000002"
    expected = {path.name: path.read_bytes() for path in step.iterdir()}
    harm(step / file)
    status, text = ckpt("repair", run_directory, "--from", copy, "--dry-run")
    assert (status, "step 2 would be mended" in text) == (0, True), text
    status, text = ckpt("repair", run_directory, "--from", copy)
    assert (status, "step 2 mended" in text) == (0, True), text
    assert {path.name: path.read_bytes() for path in step.iterdir()} == expected
    assert len(CheckpointDirectory(run_directory).set_aside()) == 1
    assert ckpt("verify", run_directory, "--all")[0] == 0


def test_two_copies_that_are_both_damaged_make_a_whole_one(run_directory: Path, ckpt: Ckpt) -> None:
    copy = copy_of(run_directory)
    name = "step-00000004/rank-00000.safetensors"
    (shard,) = open_checkpoint(run_directory).info("data.table").shards
    for directory, at in ((run_directory, shard.begin), (copy, shard.end - 1)):
        content = bytearray((directory / name).read_bytes())
        content[at] ^= 1
        (directory / name).write_bytes(content)
    assert ckpt("verify", run_directory)[0] == ckpt("verify", copy)[0] == 2
    assert ckpt("repair", run_directory, "--from", copy / "step-00000004")[0] == 0
    assert ckpt("verify", run_directory)[0] == 0


def test_a_delta_is_mended_with_its_holes(tmp_path: Path, ckpt: Ckpt) -> None:
    run_directory = tmp_path / "run"
    frozen, moving = torch.arange(2.0**16), torch.zeros(2**15)
    with Checkpointer(run_directory, keep_last=None, full_every=4, delta_extent_bytes=4096) as checkpoints:
        for step in range(3):
            moving[:8] += 1
            checkpoints.checkpoint(step, {"frozen": frozen, "moving": moving}).durable.result(60)
    copy = copy_of(run_directory)
    assert [line.split()[-1] for line in ckpt("ls", run_directory)[1].splitlines()[1:]] == ["whole", "delta", "delta"]
    step = run_directory / "step-00000002"
    expected = {path.name: path.read_bytes() for path in step.iterdir()}
    for file in step.iterdir():
        if file.suffix == ".delta":
            (shard,) = open_checkpoint(step).info("moving").shards
            content = bytearray(file.read_bytes())
            content[shard.begin] ^= 1
            file.unlink()  # other directories may have the file under another name
            file.write_bytes(content)
        elif file.suffix == ".base":
            file.unlink()
    assert ckpt("verify", step)[0] == 2
    assert ckpt("repair", run_directory, "--from", copy)[0] == 0
    mended = open_checkpoint(step)
    assert mended.verify() == []
    assert set(expected) == {path.name for path in step.iterdir()}
    assert torch.equal(mended.read("frozen"), frozen)
    assert torch.equal(mended.read("moving"), moving)


def test_what_was_moved_aside_can_be_mended_later(run_directory: Path, ckpt: Ckpt, damage_table: Damage) -> None:
    copy = copy_of(run_directory)
    damage_table(2)
    assert ckpt("repair", run_directory)[0] == 2
    assert steps(run_directory) == [1, 4]
    assert ckpt("repair", run_directory, "--from", copy)[0] == 0
    assert steps(run_directory) == [1, 2, 4]
    assert ckpt("verify", run_directory, "--all")[0] == 0


def test_another_run_with_the_same_steps_is_no_copy(
    run_directory: Path, tmp_path: Path, ckpt: Ckpt, damage_table: Damage
) -> None:
    with Checkpointer(tmp_path / "other") as checkpoints:
        checkpoints.checkpoint(2, {"x": torch.ones(3)}).durable.result(60)
    damage_table(2)
    status, text = ckpt("repair", run_directory, "--from", tmp_path / "other", "--dry-run")
    assert (status, "no copy has all of rank-00000.safetensors" in text) == (2, True), text
    (run_directory / "step-00000002" / "manifest.json").unlink()
    status, text = ckpt("repair", run_directory, "--from", tmp_path / "other")
    assert (status, "no copy has a manifest that fits" in text) == (2, True), text


def test_repair_and_prune_leave_a_running_job_alone(run_directory: Path, ckpt: Ckpt) -> None:
    directory = CheckpointDirectory(run_directory)
    directory.lock()
    try:
        for words in (
            ["repair"],
            ["repair", "--dry-run"],
            ["prune", "--keep-last", 1],
            ["prune", "--keep-last", 1, "--dry-run"],
        ):
            status, text = ckpt(words[0], run_directory, *words[1:])
            assert (status, "is being written by" in text) == (4, True), words
    finally:
        directory.unlock()
    assert steps(run_directory) == [1, 2, 4]


def test_holder_is_seen_without_disturbing_it(run_directory: Path) -> None:
    directory = CheckpointDirectory(run_directory)
    assert directory.holder() is None
    directory.lock()
    assert "pid" in (CheckpointDirectory(run_directory).holder() or "")
    with pytest.raises(DirectoryBusyError):
        CheckpointDirectory(run_directory).lock()
    directory.unlock()
    assert CheckpointDirectory(run_directory).holder() is None


def test_prune_keeps_the_last_and_every_nth(run_directory: Path, ckpt: Ckpt, ckpt_json: CkptJson) -> None:
    status, report = ckpt_json("prune", run_directory, "--keep-last", 1, "--keep-every", 2, "--dry-run")
    assert (status, report["removed"], report["kept"], report["verified"]) == (0, [1], [2, 4], 4)
    assert steps(run_directory) == [1, 2, 4]
    status, text = ckpt("prune", run_directory, "--keep-last", 1)
    assert (status, text.splitlines()[1]) == (0, "kept 4; step 4 verified")
    assert steps(run_directory) == [4]


def test_prune_never_leaves_fewer_than_one_verified(run_directory: Path, ckpt: Ckpt, damage_table: Damage) -> None:
    damage_table(4)
    status, text = ckpt("prune", run_directory, "--keep-last", 1)
    assert (status, "step 2 verified" in text, "left alone, damaged: 4" in text) == (0, True, True), text
    assert steps(run_directory) == [2, 4]
    damage_table(2)
    status, text = ckpt("prune", run_directory, "--keep-last", 1)
    assert (status, "no checkpoint is whole, so nothing was removed" in text) == (2, True)
    assert steps(run_directory) == [2, 4]
