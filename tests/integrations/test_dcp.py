"""dcp.save and dcp.load through our storage writer and reader, in one process."""

import datetime
import enum
import errno
import fractions
import json
import os
import pickle
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys
from training import assert_same_bits, small_model, trained

import datastates
from datastates.directory import CheckpointDirectory, read_manifest
from datastates.integrations.dcp_objects import is_exact

import _elastates

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is (disabled, )?unavailable or uninitialized:UserWarning"
)


class Colour(enum.IntEnum):
    RED = 1


@pytest.fixture(autouse=True)
def no_fault_outlives_its_test() -> Iterator[None]:
    yield
    _elastates.clear_fault()


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "large": torch.randn(300, 1000),
        "strided": torch.randn(30, 20).t(),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "half": torch.randn(7).bfloat16(),
        "eight": torch.randn(5).to(torch.float8_e4m3fn),
        "wave": torch.randn(3, 2, dtype=torch.complex64),
        "conjugated": torch.randn(3, dtype=torch.complex64).conj(),
    }


def values() -> dict[str, Any]:
    return {
        "step": 7,
        "betas": (0.9, float("nan")),
        "nested": [1, {"a": [None, b"raw"], 2: {3, 4}}],
        "array": np.arange(6, dtype=np.int16).reshape(2, 3),
        "when": datetime.datetime(2026, 1, 2),
        "colour": Colour.RED,
        "third": fractions.Fraction(1, 3),
    }


def blank(state: dict[str, Any]) -> dict[str, Any]:
    return {k: torch.zeros_like(v) if isinstance(v, torch.Tensor) else None for k, v in state.items()}


def test_every_kind_of_tensor_and_value_comes_back(tmp_path: Path) -> None:
    state = tensors() | values()
    dcp.save(state, storage_writer=datastates.dcp_writer(tmp_path), no_dist=True)
    found = blank(state)
    found["nested"] = [None, {"a": [None, None], "2": None}]
    dcp.load(found, storage_reader=datastates.dcp_reader(tmp_path), no_dist=True)
    for name, tensor in tensors().items():
        assert_same_bits(found[name], tensor, name)
    assert found["nested"] == [1, {"a": [None, b"raw"], "2": {3, 4}}]  # DCP makes every key a string
    assert (found["step"], found["betas"][0], found["when"]) == (7, 0.9, values()["when"])
    assert type(found["colour"]) is Colour
    assert found["third"] == values()["third"]
    assert found["array"].dtype == np.int16
    assert found["array"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_what_is_written_is_a_checkpoint_of_ours_that_stock_dcp_reads(tmp_path: Path) -> None:
    state = {"model": {"w": torch.randn(40, 30)}, "step": 3, "third": fractions.Fraction(1, 3)}
    writer = datastates.dcp_writer(tmp_path / "step-12", metadata={"run": "x"})
    metadata = dcp.save(state, storage_writer=writer, no_dist=True)
    path = tmp_path / "step-00000012"
    assert (writer.published, metadata.storage_meta.checkpoint_id) == (path, str(path))
    manifest = read_manifest(path)
    assert (manifest.step, manifest.num_ranks, manifest.metadata["run"]) == (12, 1, "x")
    stored = json.loads((path / "rank-00000.objects.json").read_text())
    assert (stored["step"], stored["third"]["$"]) == (3, "torch_save")
    found = {"model.w": torch.zeros(40, 30)}
    dcp.load(found, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    assert_same_bits(found["model.w"], state["model"]["w"])


def test_checkpointer_restores_what_dcp_wrote_and_dcp_loads_what_checkpointer_wrote(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    expected = {k: v.clone() for k, v in model.state_dict().items()}
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, storage_writer=datastates.dcp_writer(tmp_path / "a"))
    other, _ = trained(2)
    with datastates.Checkpointer(tmp_path / "a") as checkpoints:
        assert checkpoints.restore({"model": other}, only="model.*") == 1
    for name, tensor in other.state_dict().items():
        assert_same_bits(tensor, expected[name], name)

    with datastates.Checkpointer(tmp_path / "b") as checkpoints:
        checkpoints.checkpoint(4, {"model": model, "optimizer": optimizer, "progress": {"epoch": 2}})
    third, third_optimizer = trained(3)
    model_state, optimizer_state = get_state_dict(third, third_optimizer)
    optimizer_state["param_groups"][0]["lr"] = 5.0
    state = {"model": model_state, "optimizer": optimizer_state, "progress": {"epoch": 0}}
    dcp.load(state, storage_reader=datastates.dcp_reader(tmp_path / "b"))
    set_state_dict(third, third_optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    for name, tensor in third.state_dict().items():
        assert_same_bits(tensor, expected[name], name)
    for ours, theirs in zip(optimizer.state.values(), third_optimizer.state.values(), strict=True):
        assert_same_bits(theirs["exp_avg"], ours["exp_avg"])
    assert (third_optimizer.param_groups[0]["lr"], state["progress"]["epoch"]) == (0.01, 2)


def test_deltas_are_read_as_if_they_were_whole(tmp_path: Path) -> None:
    state = {"frozen": torch.randn(300, 1000), "w": torch.zeros(5)}
    with datastates.Checkpointer(tmp_path, full_every=10) as checkpoints:
        for step in range(3):
            state["w"].fill_(step)
            checkpoints.checkpoint(step, state).durable.result(60)
        assert checkpoints.stats().num_deltas == 2
    found = blank(state)
    dcp.load(found, storage_reader=datastates.dcp_reader(tmp_path))
    assert_same_bits(found["frozen"], state["frozen"])
    assert found["w"].eq(2).all()


def test_steps_are_named_counted_and_never_overwritten(tmp_path: Path) -> None:
    state = {"w": torch.ones(3)}
    writer = datastates.dcp_writer(tmp_path)
    dcp.save(state, storage_writer=writer)
    dcp.save(state, storage_writer=writer)
    dcp.save(state, checkpoint_id=tmp_path / "step-7", storage_writer=writer)
    with pytest.raises(CheckpointException, match="step 7 is published already"):
        dcp.save(state, storage_writer=datastates.dcp_writer(tmp_path, step=7))
    dcp.save(state, storage_writer=datastates.dcp_writer(tmp_path))
    assert CheckpointDirectory(tmp_path).steps() == [0, 1, 7, 8]
    with pytest.raises(ValueError, match="names step 7"):
        datastates.dcp_writer(tmp_path / "step-7", step=8)
    with pytest.raises(TypeError, match="unknown option keep"):
        datastates.dcp_writer(tmp_path, keep=8)
    with pytest.raises(ValueError, match="needs for itself"):
        datastates.dcp_writer(tmp_path, metadata={"dcp": 1})


def test_retention(tmp_path: Path) -> None:
    for _ in range(6):
        dcp.save({"w": torch.ones(3)}, storage_writer=datastates.dcp_writer(tmp_path, keep_last=2, keep_every=3))
    assert CheckpointDirectory(tmp_path).steps() == [0, 3, 4, 5]


def test_async_save_in_a_thread_and_several_at_once(tmp_path: Path) -> None:
    state = {"w": torch.zeros(1000)}
    futures = []
    for step in range(3):
        state["w"].fill_(step)
        futures.append(dcp.async_save(state, storage_writer=datastates.dcp_writer(tmp_path / f"{step}", step=step)))
        state["w"].fill_(-1)
    for step, future in enumerate(futures):
        future.result()
        found = {"w": torch.empty(1000)}
        dcp.load(found, storage_reader=datastates.dcp_reader(tmp_path / f"{step}/step-{step}"))
        assert found["w"].eq(step).all()


def test_writer_travels_to_another_process(tmp_path: Path) -> None:
    writer = datastates.dcp_writer(tmp_path, keep_last=1)
    dcp.save({"w": torch.ones(1)}, storage_writer=writer)
    dcp.save({"w": torch.ones(1)}, storage_writer=pickle.loads(pickle.dumps(writer)))
    assert CheckpointDirectory(tmp_path).steps() == [1]


def test_partial_loads(tmp_path: Path) -> None:
    state = {"model": {"w": torch.randn(5), "b": torch.randn(2)}, "progress": {"epoch": 3}}
    dcp.save(state, storage_writer=datastates.dcp_writer(tmp_path))
    found = _load_state_dict_from_keys({"model.w", "progress"}, storage_reader=datastates.dcp_reader(tmp_path))
    assert_same_bits(found["model"].pop("w"), state["model"]["w"])
    assert found == {"model": {}, "progress": {"epoch": 3}}
    some = {"model": {"w": torch.zeros(5), "new": torch.zeros(1)}}
    with pytest.raises(CheckpointException, match=r"Missing key in checkpoint state_dict: model\.new"):
        dcp.load(some, storage_reader=datastates.dcp_reader(tmp_path))
    planner = DefaultLoadPlanner(allow_partial_load=True)
    dcp.load(some, storage_reader=datastates.dcp_reader(tmp_path), planner=planner)
    assert_same_bits(some["model"]["w"], state["model"]["w"])


def test_loading_converts_as_stock_dcp_does(tmp_path: Path) -> None:
    state = {"w": torch.randn(6, 4)}
    dcp.save(state, storage_writer=datastates.dcp_writer(tmp_path))
    found = {"w": torch.zeros(4, 6, dtype=torch.bfloat16).t()}
    dcp.load(found, storage_reader=datastates.dcp_reader(tmp_path))
    assert_same_bits(found["w"].contiguous(), state["w"].bfloat16())


class Halving(DefaultSavePlanner):
    """Stores every tensor in half precision, and marks every value."""

    def transform_object(self, write_item: Any, object: Any) -> Any:
        if isinstance(object, torch.Tensor):
            return object.bfloat16()
        return super().transform_object(write_item, ["marked", object])


def test_planners_that_transform_are_heard(tmp_path: Path) -> None:
    state = {"w": torch.randn(9), "step": 3}
    dcp.save(state, storage_writer=datastates.dcp_writer(tmp_path), planner=Halving())
    assert read_manifest(tmp_path / "step-00000000").tensors["w"].dtype == "bfloat16"
    found = {"w": torch.zeros(9), "step": 0}
    dcp.load(found, storage_reader=datastates.dcp_reader(tmp_path))
    assert_same_bits(found["w"], state["w"].bfloat16().float())
    assert found["step"] == ["marked", 3]


class Splitting(DefaultSavePlanner):
    """Gives a tensor of four rows as two boxes, as a rank with two shards of a ShardedTensor would."""

    def create_local_plan(self) -> SavePlan:
        (item,) = super().create_local_plan().items
        chunks = [ChunkStorageMetadata(torch.Size((row, 0)), torch.Size((2, 3))) for row in (0, 2)]
        items = [
            replace(
                item,
                index=MetadataIndex("w", chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=replace(item.tensor_data, chunk=chunk),
            )
            for chunk in chunks
        ]
        return SavePlan(items)

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        row = write_item.index.offset[0]
        return self.state_dict["w"][row : row + 2]


def test_several_boxes_of_one_tensor_on_a_rank(tmp_path: Path) -> None:
    state = {"w": torch.randn(4, 3)}
    planner = Splitting(flatten_state_dict=False)
    dcp.save(state, storage_writer=datastates.dcp_writer(tmp_path), planner=planner)
    path = tmp_path / "step-00000000"
    assert [file.name for file in read_manifest(path).files] == ["rank-00000.safetensors", "rank-00000-1.safetensors"]
    for reader in (datastates.dcp_reader(path), HuggingFaceStorageReader(str(path))):
        found = {"w": torch.zeros(4, 3)}
        dcp.load(found, storage_reader=reader)
        assert_same_bits(found["w"], state["w"])


class Half(Splitting):
    """Leaves the second box out."""

    def create_local_plan(self) -> SavePlan:
        return SavePlan(super().create_local_plan().items[:1])


def test_part_of_a_tensor_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    writer = datastates.dcp_writer(tmp_path)
    with pytest.raises(CheckpointException, match="w: the stored boxes hold 6 of 12 elements"):
        dcp.save({"w": torch.randn(4, 3)}, storage_writer=writer, planner=Half(flatten_state_dict=False))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    CheckpointDirectory(tmp_path).lock()  # it is free


def test_notes_of_another_writer_under_the_same_name(tmp_path: Path) -> None:
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, {"epoch": 3}, metadata={"dcp": 1})
        checkpoints.checkpoint(1, {"epoch": 4}, metadata={"dcp": {"objects": {"epoch": 5}}})
    found = {"epoch": 0}
    dcp.load(found, storage_reader=datastates.dcp_reader(tmp_path / "step-0"))
    assert found == {"epoch": 3}
    with pytest.raises(CheckpointException, match="said to be with rank 5, which did not save"):
        dcp.load(found, storage_reader=datastates.dcp_reader(tmp_path / "step-1"))


def test_plan_caching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.checkpoint.planner import SavePlanner

    for cache in ("_cached_save_plan", "_cached_final_save_plan", "_cached_all_plans", "_cached_global_plan"):
        monkeypatch.setattr(SavePlanner, cache, {})
    for step in range(3):
        state = {"w": torch.full((5,), float(step)), "step": step}
        planner = DefaultSavePlanner(enable_plan_caching=True)
        dcp.save(state, storage_writer=datastates.dcp_writer(tmp_path), planner=planner)
    found = {"w": torch.zeros(5), "step": None}
    dcp.load(found, storage_reader=datastates.dcp_reader(tmp_path / "step-2"))
    assert found["w"].eq(2).all()
    assert found["step"] == 2


def damage(path: Path, offset: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["rank-00000.safetensors", "rank-00000.objects.json", "manifest.json"])
def test_damage_is_named_or_passed_over(tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture) -> None:
    for step in range(2):
        dcp.save({"w": torch.full((5,), step), "step": step}, storage_writer=datastates.dcp_writer(tmp_path))
    damage(tmp_path / "step-00000001" / file, -3)
    found = {"w": torch.zeros(5, dtype=torch.int64), "step": None}
    with pytest.raises(CheckpointException, match=r"step-00000001/\S+: .*match"):
        dcp.load(found, storage_reader=datastates.dcp_reader(tmp_path / "step-1"))
    dcp.load(found, storage_reader=datastates.dcp_reader(tmp_path))
    assert found["w"].eq(0).all()
    assert found["step"] == 0
    assert "step-00000001" in caplog.text
    damage(tmp_path / "step-00000000" / file, -3)
    with pytest.raises(CheckpointException, match=r"no checkpoint of .*step-00000000"):
        dcp.load(found, storage_reader=datastates.dcp_reader(tmp_path))


def test_nothing_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "step-3"):
        with pytest.raises(CheckpointException, match="there is no checkpoint"):
            dcp.load({"w": torch.zeros(5)}, storage_reader=datastates.dcp_reader(path))
        assert not datastates.dcp_reader(path).validate_checkpoint_id(path)


def test_failed_write_publishes_nothing_and_the_next_one_clears_up(tmp_path: Path) -> None:
    state = {"w": torch.ones(1 << 20)}
    _elastates.set_fault("write", error=errno.ENOSPC)
    with pytest.raises(CheckpointException, match=r"StorageFullError: .*step-00000000"):
        dcp.save(state, storage_writer=datastates.dcp_writer(tmp_path))
    _elastates.clear_fault()
    assert CheckpointDirectory(tmp_path).steps() == []
    dcp.save(state, storage_writer=datastates.dcp_writer(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "step-00000000"]


@pytest.mark.parametrize(
    ("operation", "error", "says"),
    [
        ("small_write", errno.ENOSPC, r"StorageFullError: .*writing .*objects\.json: No space left on device"),
        ("small_fsync", errno.EDQUOT, r"StorageFullError: .*syncing .*objects\.json: Disk quota exceeded"),
        ("small_open", errno.EIO, r"CheckpointError: .*creating .*objects\.json: Input/output error"),
    ],
)
def test_every_error_of_storage_is_told_as_ours(tmp_path: Path, operation: str, error: int, says: str) -> None:
    nth = 1 if operation == "small_fsync" else 2  # the lock is opened and written before
    _elastates.set_fault(operation, nth=nth, error=error)
    with pytest.raises(CheckpointException, match=says):
        dcp.save({"w": torch.ones(9)}, storage_writer=datastates.dcp_writer(tmp_path))


def test_another_writer_is_refused(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path)
    directory.lock()
    with pytest.raises(CheckpointException, match=f"being written by .* pid {os.getpid()}"):
        dcp.save({"w": torch.ones(1)}, storage_writer=datastates.dcp_writer(tmp_path))
    directory.unlock()
    dcp.save({"w": torch.ones(1)}, storage_writer=datastates.dcp_writer(tmp_path))


def test_save_in_flight_in_another_thread_is_refused(tmp_path: Path) -> None:
    _elastates.set_fault("write", times=1, hold=True)
    first = dcp.async_save({"w": torch.ones(1 << 20)}, storage_writer=datastates.dcp_writer(tmp_path))
    attempt = threading.Event()
    while not any(tmp_path.glob(".tmp-step-*/rank-*.safetensors")):  # until it is in its write
        attempt.wait(0.01)
    with pytest.raises(CheckpointException, match="is being written by"):
        dcp.save({"w": torch.ones(1)}, storage_writer=datastates.dcp_writer(tmp_path))
    _elastates.clear_fault()
    first.result()
    assert CheckpointDirectory(tmp_path).steps() == [0]


def test_what_cannot_be_stored_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointException, match=r"graph is a Tensor with layout torch\.sparse_coo"):
        dcp.save({"graph": torch.eye(3).to_sparse()}, storage_writer=datastates.dcp_writer(tmp_path))
    with pytest.raises(ValueError, match="use_collectives=False would leave"):
        dcp.save({"w": torch.ones(1)}, storage_writer=datastates.dcp_writer(tmp_path), use_collectives=False)


def test_pickles_of_checkpointer_need_permission(tmp_path: Path) -> None:
    with datastates.Checkpointer(tmp_path) as checkpoints:
        third = datastates.pickled(fractions.Fraction(1, 3))
        checkpoints.checkpoint(0, {"third": third, "model": small_model(), "rng": datastates.rng_state()})
    found = {"third": None}
    with pytest.raises(CheckpointException, match="allow_pickle=True if you trust"):
        dcp.load(found, storage_reader=datastates.dcp_reader(tmp_path))
    dcp.load(found, storage_reader=datastates.dcp_reader(tmp_path, allow_pickle=True))
    assert found["third"] == fractions.Fraction(1, 3)
    found = {"model": {"0.bias": torch.zeros(5)}, "rng": {"torch": None}}
    dcp.load(found, storage_reader=datastates.dcp_reader(tmp_path))
    assert_same_bits(found["model"]["0.bias"], small_model().state_dict()["0.bias"])
    assert found["rng"]["torch"].dtype == torch.uint8


def test_values_written_by_torch_save_are_decoded_without_running_code(tmp_path: Path) -> None:
    state = {"numbers": {"a": Colour.RED, "t": (torch.ones(2), 3)}}
    dcp.save(state, storage_writer=datastates.dcp_writer(tmp_path))
    stored = json.loads((tmp_path / "step-00000000/rank-00000.objects.json").read_text())
    pair, three = datastates.typed_json.decode(stored["numbers.t"])
    assert (pair.tolist(), three) == ([1, 1], 3)
    with pytest.raises(ValueError, match=r"stored with torch\.save and has types that only running code"):
        datastates.typed_json.decode(stored["numbers.a"])


@pytest.mark.parametrize("value", [True, 1.5, "x", (1, [2, {3: b"y"}]), np.float32(1), torch.Size([2]), {1: {2, 3}}])
def test_exact_values(value: object) -> None:
    assert is_exact(value)


def endless() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(
    "value",
    [Colour.RED, fractions.Fraction(1, 3), torch.ones(1), [torch.ones(1)], np.array([None]), endless(), {1: object()}],
)
def test_inexact_values(value: object) -> None:
    assert not is_exact(value)
