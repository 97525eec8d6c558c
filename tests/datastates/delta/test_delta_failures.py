"""What goes wrong between deltas: damage, kills, lost bases, file systems without links, retention too early."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from deltas import COLUMNS, DELTA, FULL, ROWS, assert_holds, left, save
from held_storage import HeldStorage
from launching import Launcher

from datastates import Checkpointer, CheckpointError, open_checkpoint
from datastates.delta import Base, DeltaBases, common_base, refer, written_bytes
from datastates.directory import read_manifest
from datastates.errors import DamagedCheckpointError
from datastates.manifest import DataFile

import _elastates

JOB = Path(__file__).with_name("delta_job.py")


def flip(path: Path, position: int) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x10]))


def test_damage_in_a_base_is_named_and_passes_over_all_that_need_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = torch.randn(ROWS, COLUMNS)
    with Checkpointer(tmp_path, full_every=3, keep_last=None) as checkpoints:
        for step in range(5):  # full at 0 and at 3
            table[0] = step
            save(checkpoints, step, {"table": table})
    flip(tmp_path / "step-00000003" / FULL, 1 << 20)
    damaged = open_checkpoint(tmp_path / "step-00000004").verify()
    assert [(d.file, d.tensors) for d in damaged] == [("rank-00000.from-step-00000003.base", ("table",))]
    fresh = {"table": torch.empty(ROWS, COLUMNS)}
    with caplog.at_level(logging.WARNING), Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.restore(fresh) == 3
    assert fresh["table"][0, 0] == 2
    said = "step-00000004/rank-00000.from-step-00000003.base: checksum mismatch in bytes [1048576, 1114112)"
    assert said in caplog.text
    assert "step-00000003/rank-00000.safetensors: checksum mismatch" in caplog.text


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no base": (lambda c: (c / "rank-00000.from-step-00000000.base").unlink(), "No such file"),
    "no delta": (lambda c: (c / DELTA).unlink(), "No such file"),
    "base cut": (lambda c: os.truncate(c / "rank-00000.from-step-00000000.base", 5000), "5000 bytes, expected"),
    "header of the base": (lambda c: flip(c / "rank-00000.from-step-00000000.base", 20), "the header's checksum"),
    "header of the delta": (lambda c: flip(c / DELTA, 20), "the header's checksum"),
    "extent of the delta": (lambda c: flip(c / DELTA, 5000), r"\.delta: checksum mismatch in bytes \[4096, 65536\)"),
}


def read_all(checkpoint: Path) -> torch.Tensor:
    read_manifest(checkpoint)
    return open_checkpoint(checkpoint).read("table")


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_of_every_kind_is_seen(tmp_path: Path, kind: str) -> None:
    table = torch.randn(ROWS, COLUMNS)
    with Checkpointer(tmp_path, full_every=3) as checkpoints:
        save(checkpoints, 0, {"table": table})
        table[0] += 1
        save(checkpoints, 1, {"table": table})
    checkpoint = tmp_path / "step-00000001"
    damage, said = DAMAGE[kind]
    damage(checkpoint)
    with pytest.raises(DamagedCheckpointError, match=said):
        read_all(checkpoint)
    assert open_checkpoint(checkpoint).verify() != []


def test_a_failed_delta_is_no_base_of_the_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = torch.randn(ROWS, COLUMNS)
    with Checkpointer(tmp_path, full_every=8) as checkpoints:
        save(checkpoints, 0, {"table": table})
        table[0] += 1
        _elastates.set_fault("fsync", error=errno.EIO)
        assert isinstance(checkpoints.checkpoint(1, {"table": table}).durable.exception(60), CheckpointError)
        table[200] += 1
        _, now = save(checkpoints, 2, {"table": table})
        assert checkpoints.stats().num_deltas == 1
        assert checkpoints.steps() == [0, 2]
    assert left(tmp_path) == {".lock", "step-00000000", "step-00000002"}
    assert_holds(tmp_path / "step-00000002", now)
    assert "Input/output error" in caplog.text


def test_a_base_that_somebody_removed_makes_the_next_a_full_one(tmp_path: Path) -> None:
    table = torch.randn(ROWS, COLUMNS)
    with Checkpointer(tmp_path, full_every=8) as checkpoints:
        save(checkpoints, 0, {"table": table})
        shutil.rmtree(tmp_path / "step-00000000")
        _, now = save(checkpoints, 1, {"table": table})
        assert checkpoints.stats().num_deltas == 0
        save(checkpoints, 2, {"table": table})
        assert checkpoints.stats().num_deltas == 1
    assert_holds(tmp_path / "step-00000001", now)


def test_a_link_that_fails_fails_one_checkpoint_and_the_next_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table = torch.randn(ROWS, COLUMNS)
    with Checkpointer(tmp_path, full_every=8) as checkpoints:
        for step in range(2):
            save(checkpoints, step, {"table": table})
        _elastates.set_fault("link", error=errno.EMLINK)
        assert "Too many links" in str(checkpoints.checkpoint(2, {"table": table}).durable.exception(60))
        _, now = save(checkpoints, 3, {"table": table})
    assert FULL in left(tmp_path / "step-00000003")
    assert_holds(tmp_path / "step-00000003", now)
    assert "EMLINK" in caplog.text or "Too many links" in caplog.text


def test_a_trial_link_that_cannot_be_removed_fails_one_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = torch.randn(ROWS, COLUMNS)
    with Checkpointer(tmp_path, full_every=8) as checkpoints:
        save(checkpoints, 0, {"table": table})
        _elastates.set_fault("unlink", error=errno.EIO)
        assert "Input/output error" in str(checkpoints.checkpoint(1, {"table": table}).durable.exception(60))
        save(checkpoints, 2, {"table": table})
        assert checkpoints.stats().num_deltas == 1
    assert left(tmp_path / "step-00000002") == {
        "manifest.json",
        "rank-00000.objects.json",
        DELTA,
        "rank-00000.from-step-00000000.base",
    }
    assert "Input/output error" in caplog.text


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV])
def test_without_hard_links_all_are_full_and_it_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    table = torch.randn(ROWS, COLUMNS)
    _elastates.set_fault("link", error=number, times=2**31 - 1)
    with caplog.at_level(logging.WARNING), Checkpointer(tmp_path, full_every=8) as checkpoints:
        for step in range(4):
            save(checkpoints, step, {"table": table})
        stats = checkpoints.stats()
    assert (stats.num_durable, stats.num_failed, stats.num_deltas) == (4, 0, 0)
    assert [os.strerror(number) in record.message for record in caplog.records] == [True]
    assert "has no hard links" in caplog.text


def test_after_a_restore_the_next_is_full(tmp_path: Path) -> None:
    state = {"table": torch.randn(ROWS, COLUMNS)}
    with Checkpointer(tmp_path, full_every=8) as checkpoints:
        save(checkpoints, 0, state)
        assert checkpoints.restore(state) == 1
        save(checkpoints, 1, state)
        assert checkpoints.stats().num_deltas == 0


def test_retention_waits_for_a_checkpoint_that_refers_to_what_it_would_remove(
    tmp_path: Path, storage: HeldStorage, open_checkpoints: Callable[..., Checkpointer]
) -> None:
    """keep_last=1: step 0 must go once step 1 is there, but step 2 is on its way and was compared with step 0."""
    table = torch.randn(ROWS, COLUMNS)
    checkpoints = open_checkpoints(full_every=8, keep_last=1)
    run = tmp_path / "run"
    save(checkpoints, 0, {"table": table})
    storage.hold(opens_at_gate=False)
    table[0] += 1
    one = checkpoints.checkpoint(1, {"table": table})
    table[1000] += 1
    two = checkpoints.checkpoint(2, {"table": table})
    two.safe_to_mutate.result(60)  # agreed on, so its base is settled, while step 1 cannot be published
    storage.release()
    one.durable.result(60)
    two.durable.result(60)
    checkpoints.wait()
    (file,) = read_manifest(run / "step-00000002").files
    assert file.sources == ("rank-00000.from-step-00000000.base",)
    assert_holds(run / "step-00000002", {"table": table})
    checkpoints.close()
    assert checkpoints.steps() == [2]


def test_a_kill_at_any_operation_loses_nothing(tmp_path: Path, launch: Launcher) -> None:
    """SIGKILL before each file operation of a delta: the newest step is whole, and is the newest that was durable."""
    (job,) = launch.ranks(JOB, "die_at_every_operation", str(tmp_path), num_ranks=1, port=0)
    found = json.loads(job.wait_for(r"^RESULT deaths (.*)$", timeout_s=100)[1])
    job.wait(timeout_s=60)
    assert len(found) >= 10
    assert {step for _, step in found} == {2, 3}  # before the rename, and after
    assert [wrong for wrong, _ in found if wrong] == []


def test_four_ranks_take_deltas_together(tmp_path: Path, launch: Launcher) -> None:
    ranks = launch.ranks(
        JOB,
        "lora",
        str(tmp_path / "store"),
        str(tmp_path / "run"),
        num_ranks=4,
        port=0,
        env={"GLOO_SOCKET_IFNAME": "lo", "RES_OPTIONS": "timeout:1 attempts:1"},
    )
    done = [json.loads(rank.wait_for(r"^RESULT done (.*)$", timeout_s=100)[1]) for rank in ranks]
    for rank in ranks:
        rank.wait(timeout_s=60)
    for errors, _, num_deltas, _, same in done:
        assert [step for step, error in enumerate(errors) if error] == [3]
        assert "rank 2" in errors[3]
        assert "Too many links" in errors[3]
        assert num_deltas == 3
        assert same
    assert len({written for *_, written, _ in done}) == 1
    files = dict(done[0][1])
    for step in (0, 4):
        assert files[step] == [[f"rank-{rank:05d}.safetensors", []] for rank in range(4)]
    for step, base in ((1, 0), (5, 4)):
        for rank, (name, sources) in enumerate(files[step]):
            assert name == f"rank-{rank:05d}.safetensors.delta"
            assert sources == [f"rank-{rank:05d}.from-step-{base:08d}.base"]
    (_, of_one) = files[2][1]
    assert of_one[0] in ("rank-00001.from-step-00000000.base", "rank-00001.from-step-00000001.base")


# ---- the parts


def base_of(step: int, sources: tuple[str, ...] = (), held_by: list[int] | None = None) -> Base:
    ends = np.array([8192, 12288, 16384, 20000], dtype=np.uint64)
    crcs = np.zeros(4, dtype=np.uint32)
    by = None if held_by is None else np.array(held_by, dtype=np.uint32)
    file = DataFile("data", 20000, 4096, 0, ends, crcs, sources, by)
    path = Path(f"/run/step-{step}")
    return Base(step, 0, path, "layout", file, None, full_ordinal=0, chain_bytes=20000, size_bytes=20000)


def changed(*extents: int) -> np.ndarray:
    return np.array(extents, dtype=np.uint8)


def test_references_go_to_whoever_holds_the_bytes() -> None:
    referral = refer(base_of(7), changed(0, 1, 0, 1))
    assert referral.links == {"rank-00000.from-step-00000007.base": Path("/run/step-7/data")}
    assert referral.extent_sources.tolist() == [1, 0, 1, 0]

    older = ("rank-00000.from-step-00000003.base", "rank-00000.from-step-00000001.base")
    second = refer(base_of(7, older, [2, 0, 1, 2]), changed(0, 0, 1, 0))
    assert second.sources == ("rank-00000.from-step-00000007.base", older[1])  # of step 3 nothing is needed any more
    assert second.links[older[1]] == Path("/run/step-7") / older[1]
    assert second.extent_sources.tolist() == [2, 1, 0, 2]
    assert written_bytes(4096, base_of(7).file.extent_ends, changed(0, 0, 1, 0)) == 4096 + 4096
    assert written_bytes(4096, base_of(7).file.extent_ends, changed(0, 0, 0, 1)) == 4096 + 20000 - 16384


def test_the_common_base_is_the_newest_that_all_offer() -> None:
    assert common_base([[1, 2], [2, 3], [2, 1]]) == 2
    assert common_base([[1, 2], [3]]) is None
    assert common_base([[4]]) == 4
    assert common_base([[], [4]]) is None


def test_pins_hold_retention_off_until_everybody_has_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datastates.delta.is_there", lambda base: True)
    bases = DeltaBases(full_every=8)
    for step in (1, 2, 3):
        bases.add(base_of(step))
    offered = bases.offer(1, None)
    again = bases.offer(2, None)
    assert [base.step for base in offered] == [2, 3]
    assert bases.let_go([1, 2, 3]) == [1]
    chosen = bases.settle(offered, 2)
    bases.settle(again, None)
    assert chosen is offered[0]
    assert bases.let_go([2, 3]) == [3]
    bases.release(chosen)
    assert bases.let_go([2]) == [2]
    assert bases.offer(3, None) == []


def test_a_chain_ends_by_age_and_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datastates.delta.is_there", lambda base: True)
    bases = DeltaBases(full_every=3)
    bases.add(base_of(1))
    assert [len(bases.offer(ordinal, None)) for ordinal in (1, 2, 3)] == [1, 1, 0]
    bases = DeltaBases(full_every=3)
    heavy = base_of(1)
    bases.add(Base(**{**vars(heavy), "chain_bytes": 40000}))
    assert bases.offer(1, None) == []


def test_a_step_taken_twice_is_no_base_of_its_own_name() -> None:
    bases = DeltaBases(full_every=8)
    bases.add(base_of(7, ("rank-00000.from-step-00000007.base",), [1, 0, 0, 0]))
    assert bases.offer(1, None) == []
