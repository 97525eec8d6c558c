"""Back from archives: into live states of any number of ranks, and as checkpoints, bit for bit."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import zarr
from kinds import values_of
from launching import Launcher
from rank_files import write_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from training import State, assert_same_bits, make_state, snapshot, train

import datastates
from datastates import (
    Checkpointer,
    DamagedCheckpointError,
    DirectoryBusyError,
    RestoreError,
    archive,
    open_archive,
    open_checkpoint,
    restore_archive,
    unarchive,
)
from datastates.directory import CheckpointDirectory
from datastates.zarr import archiving

Saved = tuple[Path, dict[str, torch.Tensor]]


def assert_same_state(got: State, expected: State) -> None:
    left, right = snapshot(got), snapshot(expected)
    assert left.keys() == right.keys()
    for name, value in right.items():
        if isinstance(value, torch.Tensor):
            assert_same_bits(left[name], value, name)
        else:
            assert left[name] == value, name


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, State]:
    """An archive of a trained state, and the state."""
    state = make_state(0)
    for seed in range(3):
        train(state, seed)
    with Checkpointer(tmp_path / "run") as checkpoints:
        checkpoints.checkpoint(2, state, metadata={"loss": 0.5}).durable.result(60)
    archive(tmp_path / "run", tmp_path / "a.zarr")
    return tmp_path / "a.zarr", state


def test_a_live_state_comes_back(trained: tuple[Path, State]) -> None:
    path, state = trained
    fresh = make_state(1)
    assert restore_archive(path, fresh) == 3
    assert_same_state(fresh, state)
    for each in (state, fresh):
        train(each, 7)
    assert_same_state(fresh, state)


def test_a_part_comes_back(trained: tuple[Path, State]) -> None:
    path, state = trained
    fresh = make_state(1)
    before = snapshot(fresh)
    restore_archive(path, fresh, only="model.*")
    for name, value in state["model"].state_dict().items():
        assert_same_bits(fresh["model"].state_dict()[name], value)
    assert fresh["progress"]["epoch"] == 1
    assert before["lr"] == fresh["optimizer"].param_groups[0]["lr"]


def test_a_misfit_changes_nothing(trained: tuple[Path, State]) -> None:
    fresh = make_state(1) | {"more": torch.zeros(2)}
    before = snapshot(fresh)
    with pytest.raises(ValueError, match="not in the checkpoint: more"):
        restore_archive(trained[0], fresh)
    assert_same_bits(fresh["model"].state_dict()["0.weight"], before["model.0.weight"])
    assert restore_archive(trained[0], fresh, strict=False) == 3


def test_damage_makes_the_state_unusable(trained: tuple[Path, State]) -> None:
    file = trained[0] / "model/0/weight/c/0/0"
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)
    with pytest.raises(RestoreError, match=r"must not be trained .*model/0/weight/c/0/0: .*checksum mismatch"):
        restore_archive(trained[0], make_state(1))


def test_a_checkpointer_goes_on_from_what_was_unarchived(trained: tuple[Path, State], tmp_path: Path) -> None:
    path, state = trained
    written = unarchive(path, tmp_path / "again")
    assert written == tmp_path / "again" / "step-00000002"
    fresh = make_state(1)
    with Checkpointer(tmp_path / "again") as checkpoints:
        assert checkpoints.restore(fresh) == 3
        assert_same_state(fresh, state)
        checkpoints.checkpoint(3, fresh).durable.result(60)
    assert open_checkpoint(written).manifest.metadata == {"loss": 0.5}


def test_every_kind_becomes_a_checkpoint_again(
    four_ranks: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archiving, "CHUNK_BYTES", 48)
    archive(four_ranks[0], tmp_path / "a.zarr", shard_mb=300e-6)
    found = open_checkpoint(unarchive(tmp_path / "a.zarr", tmp_path / "again", threads=3))
    source = open_checkpoint(four_ranks[0])
    assert found.verify() == []
    assert sorted(found.names()) == sorted(source.names())
    for name, value in four_ranks[1].items():
        assert_same_bits(found.read(name), value, name)
    for rank in range(4):
        assert found.objects_text(rank) == source.objects_text(rank)
    for member in ("step", "num_ranks", "aliases", "metadata", "created_unix_s"):
        assert getattr(found.manifest, member) == getattr(source.manifest, member)


def test_nothing_is_published_of_a_damaged_archive(trained: tuple[Path, State], tmp_path: Path) -> None:
    file = trained[0] / "python_state/0/c/0"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedCheckpointError, match=r"python_state/0/c/0: \d+ bytes, expected \d+: truncated"):
        unarchive(trained[0], tmp_path / "again")
    assert os.listdir(tmp_path / "again") == [".lock"]


def test_a_directory_in_use_is_left_alone(trained: tuple[Path, State], tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="step-00000002 exists and is not overwritten"):
        unarchive(trained[0], tmp_path / "run")
    (tmp_path / "other").mkdir()
    writer = CheckpointDirectory(tmp_path / "other")
    writer.lock()
    try:
        with pytest.raises(DirectoryBusyError):
            unarchive(trained[0], tmp_path / "other")
    finally:
        writer.unlock()


@pytest.fixture
def last_of_three() -> Iterator[dist.DeviceMesh]:
    """This is rank 2 of three, the others do not exist: reading an archive needs no communication."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=2, world_size=3)
    yield init_device_mesh("cpu", (3,))
    dist.destroy_process_group()


@pytest.mark.parametrize("dim", [0, 1])
def test_shards_of_another_number_of_ranks(
    tmp_path: Path, last_of_three: dist.DeviceMesh, monkeypatch: pytest.MonkeyPatch, dim: int
) -> None:
    monkeypatch.setattr(archiving, "CHUNK_BYTES", 200)
    whole = values_of(torch.float32, (16, 10))
    python = [{"rank": rank} for rank in range(4)]
    archive(write_ranks(tmp_path / "run", {"w": whole}, {"w": (0, [0, 4, 8, 12])}, python), tmp_path / "a.zarr")
    local = torch.zeros_like(whole.chunk(3, dim)[2].contiguous())
    tensor = DTensor.from_local(
        local, last_of_three, [Shard(dim)], run_check=False, shape=whole.shape, stride=whole.stride()
    )
    state = {"w": tensor, "rank": 0}
    assert restore_archive(tmp_path / "a.zarr", state, collective=False) == 8
    assert_same_bits(tensor.to_local(), whole.chunk(3, dim)[2].contiguous())
    assert state["rank"] == 2


def test_a_reader_is_all_that_is_needed(trained: tuple[Path, State]) -> None:
    found = open_archive(trained[0])
    weight = trained[1]["model"].state_dict()["0.weight"]
    assert_same_bits(found.read("model.0.weight"), weight)
    assert found.info("model.0.weight").shape == tuple(weight.shape)
    assert found.python()["progress"]["epoch"] == 3
    with pytest.raises(ValueError, match=r"has no tensor 'model.0.wieght'; similar|similar: model.0.weight"):
        found.read("model.0.wieght")
    assert isinstance(found, datastates.CheckpointReader)


def test_a_delta_is_seen_and_archived_whole(tmp_path: Path) -> None:
    state = {"table": torch.arange(512 * 512.0).reshape(512, 512)}
    with Checkpointer(tmp_path / "run", full_every=8) as checkpoints:
        checkpoints.checkpoint(1, state).durable.result(60)
        state["table"][200] += 1
        path = checkpoints.checkpoint(2, state).durable.result(60)
    assert list(path.glob("*.delta"))
    seen = zarr.open_group(datastates.zarr_store(path), mode="r")["table"]
    assert_same_bits(torch.from_numpy(seen[...]), state["table"])
    archive(path, tmp_path / "a.zarr")
    assert_same_bits(open_checkpoint(unarchive(tmp_path / "a.zarr", tmp_path / "again")).read("table"), state["table"])


def test_all_ranks_restore_or_all_raise(launch: Launcher, tmp_path: Path) -> None:
    """Two real ranks, and in turn: all is well, one cannot read a file, one has another state, one has no archive."""
    whole = values_of(torch.float32, (16, 10))
    archive(write_ranks(tmp_path / "run", {"w": whole}, {}, [{"n": 5}, {"n": 6}]), tmp_path / "a.zarr")
    job = Path(__file__).with_name("archive_job.py")
    env = {"GLOO_SOCKET_IFNAME": "lo", "RES_OPTIONS": "timeout:1 attempts:1"}
    ranks = launch.ranks(job, str(tmp_path / "store"), str(tmp_path / "a.zarr"), num_ranks=2, port=0, env=env)

    def results(name: str) -> list[Any]:
        return [json.loads(rank.wait_for(rf"^RESULT {name} (.*)$")[1]) for rank in ranks]

    assert results("restored") == [[8, 5, True], [8, 6, True]]
    for found in results("damaged"):
        assert re.match(r"RestoreError: .*half overwritten and must not be trained .*No such file", found)
    for found in results("misfit"):
        assert re.match(r"ValueError: (rank 1: )?.*not in the checkpoint: more", found)
    left, right = results("absent")
    assert left.startswith("ValueError: rank 1: ")
    assert right.startswith("FileNotFoundError: ")
    for rank in ranks:
        rank.wait()
