"""What goes wrong in the published implementation of this mechanism goes right here: one test per defect.

The list stands in the literature: files truncated while flushes are queued, waits that see an empty queue too early,
host tensors never copied, pointers to temporaries, headers on a stack that is gone, an "fsync" that syncs nothing,
short writes resumed elsewhere, a commit that is a stub, whole files read one after the other, no resharding, errors
that exit the process, and a step that waits for nobody.
"""

import errno
import gc
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from held_storage import (
    SMALL_ARENA,
    HeldStorage,
    assert_stored,
    cloned_module,
    stored_tensors,
    train,
    wide_model,
)
from launching import Launcher
from polling import until

from datastates import Checkpointer, CheckpointError, CheckpointFuture
from datastates.directory import read_manifest

import _elastates

Open = Callable[..., Checkpointer]
State = dict[str, Any]


@pytest.fixture
def state() -> State:
    """1.2 MB that an optimizer writes."""
    model = wide_model()
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}


@pytest.mark.parametrize("num_bytes", [1, 4095, 4097, 65536 * 3 + 5])
def test_the_file_is_cut_to_its_length_after_the_last_block_not_before(
    num_bytes: int, open_checkpoints: Open, storage: HeldStorage
) -> None:
    """Direct writes are whole blocks: the last one is padded, and only what was padded goes when the file is cut."""
    expected = {"value": (torch.arange(num_bytes) % 251).to(torch.uint8)}
    checkpoints = open_checkpoints(**SMALL_ARENA)
    storage.hold(opens_at_gate=False)
    checkpoint = checkpoints.checkpoint(0, expected)
    storage.release()
    assert_stored(checkpoint, expected)
    (file,) = read_manifest(checkpoint.durable.result()).files
    path = checkpoint.durable.result() / file.name
    assert path.stat().st_size == file.size_bytes == file.header_bytes + num_bytes


def test_wait_sees_work_that_no_lane_has_seen_yet(
    open_checkpoints: Open, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first lane stands still until somebody waits for the future: a wait that saw no work would return at once."""
    waited_for = threading.Event()
    exception, statvfs = CheckpointFuture.exception, os.statvfs

    def note(future: CheckpointFuture[Any], *args: Any) -> Any:
        waited_for.set()
        return exception(future, *args)

    def stand_still(path: Any) -> Any:
        assert waited_for.wait(60)
        return statvfs(path)

    monkeypatch.setattr(CheckpointFuture, "exception", note)
    monkeypatch.setattr(os, "statvfs", stand_still)
    checkpoints = open_checkpoints()
    checkpoints.checkpoint(0, state)
    checkpoints.wait()
    returned_before_anybody_waited = not waited_for.is_set()
    steps = checkpoints.steps()
    waited_for.set()  # or the lane would stand still for ever
    assert not returned_before_anybody_waited
    assert steps == [0]


def test_host_tensors_are_copied(open_checkpoints: Open, storage: HeldStorage) -> None:
    """Nobody's optimizer writes this one, so nothing would hold the trainer back."""
    value = torch.arange(400_000.0)
    checkpoints = open_checkpoints(**SMALL_ARENA)
    storage.hold(opens_at_gate=False)
    checkpoint = checkpoints.checkpoint(0, {"value": value})
    value.fill_(-1)
    storage.release()
    assert_stored(checkpoint, {"value": torch.arange(400_000.0)})


def test_temporaries_live_until_they_are_copied(open_checkpoints: Open, storage: HeldStorage) -> None:
    """A transposed parameter has no contiguous bytes, and an object hands out tensors that only it would keep."""

    class Fleeting:
        def state_dict(self) -> State:
            return {"made": torch.full((300_000,), 7.0)}

        def load_state_dict(self, state: State) -> None: ...

    parameter = torch.nn.Parameter(torch.randn(500, 400).t())
    expected = {"w": parameter.detach().clone(memory_format=torch.contiguous_format)}
    state = {"w": parameter, "optimizer": torch.optim.SGD([parameter], lr=0.1), "fleeting": Fleeting()}
    checkpoints = open_checkpoints(**SMALL_ARENA)
    storage.hold(opens_at_gate=False)
    checkpoint = checkpoints.checkpoint(0, state)
    state.clear()
    with torch.no_grad():
        parameter.zero_()
    del parameter
    gc.collect()
    scribbled = [torch.full((size,), -1.0) for size in (200_000, 300_000) for _ in range(8)]
    storage.release()
    assert_stored(checkpoint, expected | {"fleeting.made": torch.full((300_000,), 7.0)})
    assert len(scribbled) == 16


def test_headers_of_checkpoints_in_flight_are_their_own(open_checkpoints: Open, storage: HeldStorage) -> None:
    """Twenty checkpoints of twenty structures are under way at once; each file begins with its own header."""
    checkpoints = open_checkpoints(arena_mb=4, chunk_bytes=64 << 10, keep_last=None)
    storage.hold(opens_at_gate=False)
    values = [{f"tensor{step}.{i}": torch.full((step + 1,), float(i)) for i in range(step + 1)} for step in range(20)]
    taken = [checkpoints.checkpoint(step, value) for step, value in enumerate(values)]
    storage.release()
    for checkpoint, value in zip(taken, values, strict=True):
        assert_stored(checkpoint, value)


@pytest.mark.parametrize("nth", [1, 2, 3], ids=["file", "names in the attempt", "step's name"])
def test_durable_means_synced(nth: int, open_checkpoints: Open, state: State) -> None:
    """Each of the native syncs is really made, and none that fails is passed over."""
    checkpoints = open_checkpoints()
    checkpoints.checkpoint(0, state).durable.result(60)  # the first one also syncs the way to the directory
    _elastates.set_fault("fsync", nth=nth, error=errno.EIO)
    with pytest.raises(CheckpointError, match="syncing"):
        checkpoints.checkpoint(1, state).durable.result(60)
    assert _elastates.num_faults_struck() == 1
    assert checkpoints.steps() == [0]


@pytest.mark.parametrize(("nth", "name"), [(1, "rank-00000.objects.json"), (2, "manifest.json")])
def test_durable_means_that_small_files_are_synced_too(
    nth: int, name: str, open_checkpoints: Open, state: State
) -> None:
    checkpoints = open_checkpoints()
    _elastates.set_fault("small_fsync", nth=nth, error=errno.EIO)
    with pytest.raises(CheckpointError, match=f"syncing .*{name}: Input/output error"):
        checkpoints.checkpoint(0, state).durable.result(60)
    assert checkpoints.steps() == []


@pytest.mark.parametrize("direct", [True, False])
def test_a_short_write_goes_on_where_it_ended(direct: bool, open_checkpoints: Open, state: State) -> None:
    checkpoints = open_checkpoints(**SMALL_ARENA, direct_io=direct)
    _elastates.set_fault("write", nth=2, times=1000, short_by=40_000)
    assert_stored(checkpoints.checkpoint(0, state), cloned_module(state["model"]))
    assert _elastates.num_faults_struck() > 30


def test_nothing_is_published_before_all_of_it_is_written(
    open_checkpoints: Open, storage: HeldStorage, state: State
) -> None:
    """The commit is the rename of a directory that is whole; up to then no reader sees the step."""
    checkpoints = open_checkpoints(**SMALL_ARENA)
    storage.hold(opens_at_gate=False)
    checkpoint = checkpoints.checkpoint(0, state)
    assert checkpoints.steps() == []
    assert checkpoints.latest() is None
    storage.release()
    final = checkpoint.durable.result(60)
    manifest = json.loads((final / "manifest.json").read_text())
    assert manifest["step"] == 0
    assert sorted(path.name for path in final.iterdir()) == [
        "manifest.json",
        "rank-00000.objects.json",
        "rank-00000.safetensors",
    ]


def test_restoring_a_part_reads_a_part(open_checkpoints: Open, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = open_checkpoints(**SMALL_ARENA)
    checkpoints.checkpoint(0, state).durable.result(60)
    expected = cloned_module(state["model"])
    read: list[tuple[int, int, int]] = []
    real = _elastates.read_verified

    def counting(**options: Any) -> Any:
        damaged, num_bytes = real(**options)
        read.append((num_bytes, options["file_size"], options["threads"]))
        return damaged, num_bytes

    monkeypatch.setattr(_elastates, "read_verified", counting)
    with torch.no_grad():
        for parameter in state["model"].parameters():
            parameter.zero_()
    assert checkpoints.restore(state, only="model.0.*") == 1
    ((num_bytes, file_bytes, threads),) = read
    assert num_bytes < 0.7 * file_bytes
    assert threads > 1  # several reads in flight
    assert torch.equal(state["model"][0].weight, expected["model.0.weight"])
    assert not state["model"][2].weight.any()


RESHARD = """
import sys, torch, datastates
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
import os
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(os.environ["RANK"]), world_size=2)
full = torch.arange(35.0).reshape(5, 7)
mesh = init_device_mesh("cpu", (2,))
with datastates.Checkpointer("run") as checkpoints:
    checkpoints.checkpoint(0, {"w": distribute_tensor(full, mesh, [Shard(int(sys.argv[2]))])}).durable.result(60)
dist.destroy_process_group()
"""


@pytest.mark.parametrize("dim", [0, 1])
def test_two_ranks_shards_come_back_as_one_tensor(dim: int, launch: Launcher, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(RESHARD)
    env = {"GLOO_SOCKET_IFNAME": "lo", "RES_OPTIONS": "timeout:1 attempts:1"}
    ranks = launch.ranks(tmp_path / "job.py", tmp_path / "store", str(dim), num_ranks=2, port=0, env=env)
    for rank in ranks:
        rank.wait()
    whole = torch.zeros(5, 7)
    with Checkpointer(tmp_path / "run") as checkpoints:
        assert checkpoints.restore({"w": whole}) == 1
    assert torch.equal(whole, torch.arange(35.0).reshape(5, 7))


def test_an_error_fails_the_checkpoint_and_not_the_process(open_checkpoints: Open, state: State) -> None:
    """Every operation of the native core fails once, in this very process."""
    checkpoints = open_checkpoints(max_consecutive_failures=100)
    checkpoints.checkpoint(0, state).durable.result(60)
    operations = ["open", "fallocate", "write", "ftruncate", "fsync", "close", "rename"]
    operations += ["mkdir", "small_open", "small_write", "small_fsync"]
    for step, operation in enumerate(operations, start=1):
        _elastates.set_fault(operation, error=errno.EIO)
        assert isinstance(checkpoints.checkpoint(step, state).durable.exception(60), CheckpointError)
        assert _elastates.num_faults_struck() == 1
        until(lambda: not checkpoints._directory.leftovers())  # removing them meets faults, too
        train(state["model"], state["optimizer"])
    _elastates.clear_fault()
    assert_stored(checkpoints.checkpoint(99, state), cloned_module(state["model"]))
    assert checkpoints.steps() == [0, 99]


def test_the_optimizer_waits_without_being_told(open_checkpoints: Open, storage: HeldStorage, state: State) -> None:
    """A plain loop, no call but checkpoint(): every step overtakes the one before, and every file is right."""
    checkpoints = open_checkpoints(**SMALL_ARENA, keep_last=None)
    taken = []
    for step in range(5):
        storage.hold()
        taken.append((checkpoints.checkpoint(step, state), cloned_module(state["model"])))
        train(state["model"], state["optimizer"], seed=step)
    storage.release()
    assert {step for step, copied in storage.gates if not copied} == {0, 1, 2, 3, 4}
    for checkpoint, expected in taken:
        assert_stored(checkpoint, expected)
    kept = [stored_tensors(checkpoint.durable.result())["model.0.weight"] for checkpoint, _ in taken]
    assert len({tensor.sum().item() for tensor in kept}) == 5
