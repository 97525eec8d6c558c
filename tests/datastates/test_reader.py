"""The reader: any part of any tensor, from any stored boxes, with nothing read that is not needed."""

import hashlib
import itertools
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rank_files import write_ranks
from training import assert_same_bits, trained

import datastates
from datastates import Checkpointer, DamagedCheckpointError, manifest, open_checkpoint
from datastates.directory import data_file_name
from datastates.reader import batches
from oneflow_sbp import Box

import _elastates

SHAPE = (6, 5, 4)
VALUES = torch.arange(math.prod(SHAPE), dtype=torch.float32).reshape(SHAPE)


@st.composite
def boxes_in(draw: st.DrawFn) -> Box:
    ranges = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in SHAPE]
    return Box(tuple(a for a, _ in ranges), tuple(b - a for a, b in ranges))


def write_sharded(directory: Path, dim: int, cuts: list[int]) -> Path:
    """A checkpoint of a tensor that as many ranks as there are parts hold along ``dim``, as those ranks write it."""
    begins = [0, *cuts]
    return write_ranks(directory, {"t": VALUES}, {"t": (dim, begins)}, [{}] * len(begins), aliases={"tied": "t"})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.integers(0, 2), boxes_in(), st.booleans())
def test_any_box_of_any_sharded_tensor_is_the_slice_of_the_whole(
    tmp_path: Path, data: st.DataObject, dim: int, box: Box, verify: bool
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, SHAPE[dim] - 1), max_size=3)))
    reader = open_checkpoint(write_sharded(Path(tempfile.mkdtemp(dir=tmp_path)), dim, cuts))
    expected = VALUES[box.relative_to(Box.whole(SHAPE))].contiguous()
    assert_same_bits(reader.read("t", box, verify=verify), expected)
    assert_same_bits(reader.read_many({"tied": box}, verify=verify)["tied"], expected)
    storage = torch.full((*box.sizes, 2), -1.0)
    out = reader.read("t", box, out=storage[..., 0])
    assert out.data_ptr() == storage.data_ptr()
    assert_same_bits(storage[..., 0].contiguous(), expected)
    assert bool((storage[..., 1] == -1).all())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Two steps of a state with all kinds of values; the tensor ``table`` lies in several extents."""
    model, optimizer = trained()
    state = {
        "model": model,
        "optimizer": optimizer,
        "extra": {"table": torch.arange(512 * 512.0).reshape(512, 512), "pair": (torch.ones(2), "x", {3: b"y"})},
    }
    with Checkpointer(tmp_path / "run", chunk_bytes=64 << 10) as checkpoints:
        checkpoints.checkpoint(1, state)
        checkpoints.checkpoint(2, state, metadata={"loss": 0.5}).durable.result(60)
    return tmp_path / "run"


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def test_a_directory_opens_at_its_newest_whole_checkpoint(saved: Path) -> None:
    assert open_checkpoint(saved).path == saved / "step-00000002"
    assert open_checkpoint(str(saved / "step-00000001")).manifest.step == 1
    (saved / "step-00000002" / data_file_name(0)).write_bytes(b"short")
    assert open_checkpoint(saved).manifest.step == 1
    (saved / "step-00000001" / manifest.FILE_NAME).unlink()
    with pytest.raises(
        DamagedCheckpointError, match=r"no checkpoint of .* is whole: .*step-00000002.*5 bytes, expected"
    ):
        open_checkpoint(saved)
    with pytest.raises(DamagedCheckpointError, match=r"step-00000001: No such file"):
        open_checkpoint(saved / "step-00000001")


def test_where_there_is_no_checkpoint_the_error_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint: expected manifest\.json or directories step-"):
        open_checkpoint(tmp_path)


def test_tensors_come_back_bit_for_bit(saved: Path) -> None:
    reader = open_checkpoint(saved)
    model, optimizer = trained()
    values = reader.read_many(dict.fromkeys(reader.names()))
    for name, tensor in model.state_dict().items():
        assert_same_bits(values[f"model.{name}"], tensor, name)
    for name, parameter in model.named_parameters():
        assert_same_bits(values[f"optimizer.state.{name}.exp_avg"], optimizer.state[parameter]["exp_avg"], name)
    assert reader.info("extra.table").shape == (512, 512)
    assert reader.manifest.metadata == {"loss": 0.5}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every native read from now on."""
    sizes: list[int] = []
    real: Callable[..., tuple[list[int], int]] = _elastates.read_verified

    def counting(**arguments: object) -> tuple[list[int], int]:
        damaged, num_bytes = real(**arguments)
        sizes.append(num_bytes)
        return damaged, num_bytes

    monkeypatch.setattr(_elastates, "read_verified", counting)
    return sizes


def test_a_row_of_a_large_tensor_reads_one_extent(saved: Path, counted: list[int]) -> None:
    reader = open_checkpoint(saved)
    (shard,) = reader.info("extra.table").shards
    row = reader.read("extra.table", Box((300, 0), (1, 512)))
    assert_same_bits(row, torch.arange(300 * 512.0, 301 * 512.0).reshape(1, 512))
    assert len(counted) == 1
    assert counted[0] <= (64 << 10) + 4096 < shard.end - shard.begin
    counted.clear()
    reader.read("extra.table", Box((300, 0), (1, 512)), verify=False)
    assert sum(counted) <= 8192


def test_a_column_reads_the_rows_it_spans_and_no_more(saved: Path, counted: list[int]) -> None:
    column = open_checkpoint(saved).read("extra.table", Box((0, 5), (100, 1)))
    assert_same_bits(column, torch.arange(512 * 512.0).reshape(512, 512)[:100, 5:6].contiguous())
    assert sum(counted) <= 100 * 2048 + 2 * (64 << 10)


def test_python_state_comes_back_with_its_tensors(saved: Path) -> None:
    state = open_checkpoint(saved).python()
    assert set(state) == {"optimizer", "extra"}
    assert_same_bits(state["extra"]["table"][1], torch.arange(512.0, 1024.0))
    tensor, text, inner = state["extra"]["pair"]
    assert_same_bits(tensor, torch.ones(2))
    assert (text, inner) == ("x", {3: b"y"})
    with pytest.raises(ValueError, match=r"saved by 1 ranks, there is no rank 1"):
        open_checkpoint(saved).python(1)


def test_a_pickle_is_decoded_only_if_it_is_trusted(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, {"odd": datastates.pickled(1 + 2j)}).durable.result(60)
    reader = open_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"rank-00000\.objects\.json: .*allow_pickle=True"):
        reader.python()
    assert reader.python(allow_pickle=True)["odd"] == 1 + 2j


def test_arguments_that_do_not_fit_are_named_with_what_would(saved: Path) -> None:
    reader = open_checkpoint(saved)
    with pytest.raises(ValueError, match=r"has no tensor 'extra\.tabel'; similar: extra\.table"):
        reader.read("extra.tabel")
    with pytest.raises(ValueError, match=r"leaves extra\.table, which is float32\[512, 512\]"):
        reader.read("extra.table", Box((500, 0), (13, 512)))
    with pytest.raises(ValueError, match=r"out is float64\[2, 512\], expected float32\[1, 512\]"):
        reader.read("extra.table", Box((0, 0), (1, 512)), out=torch.zeros(2, 512, dtype=torch.float64))


def test_a_whole_checkpoint_has_no_damage_and_progress_reaches_its_size(saved: Path) -> None:
    seen: list[tuple[int, int]] = []
    reader = open_checkpoint(saved)
    assert reader.verify(lambda done, total: seen.append((done, total))) == []
    assert seen == sorted(seen)
    size = sum((reader.path / file.name).stat().st_size for file in (*reader.manifest.files, *reader.manifest.objects))
    assert seen[-1] == (size, size)


def test_all_damage_is_found_and_named(saved: Path) -> None:
    reader = open_checkpoint(saved)
    (file,), (objects,) = reader.manifest.files, reader.manifest.objects
    (shard,) = reader.info("extra.table").shards
    flip(reader.path / file.name, 20)
    flip(reader.path / file.name, shard.begin)
    flip(reader.path / file.name, shard.end - 1)
    flip(reader.path / objects.name, 3)
    header, first, last, python = reader.verify()
    assert (header.begin, header.end, header.tensors) == (0, file.header_bytes, ())
    assert (first.file, first.begin, first.tensors) == (file.name, shard.begin, ("extra.table",))
    assert (last.end, last.tensors) == (shard.end, ("extra.table",))
    assert first.end <= last.begin
    assert f"checksum mismatch in bytes [{first.begin}, {first.end}), expected CRC32C" in first.what
    assert (python.file, python.end) == (objects.name, objects.size_bytes)
    with pytest.raises(DamagedCheckpointError, match=r"rank-00000\.safetensors: checksum mismatch .* extra\.table"):
        reader.read("extra.table", Box((0, 0), (1, 512)))
    assert_same_bits(reader.read("extra.table", Box((256, 0), (1, 1))), torch.full((1, 1), 256 * 512.0))


def test_a_file_that_is_cut_or_gone_is_damaged_as_a_whole(saved: Path) -> None:
    reader = open_checkpoint(saved)
    path = reader.path / data_file_name(0)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    (cut,) = reader.verify()
    assert (cut.begin, cut.end) == (0, len(content))
    assert set(cut.tensors) == set(reader.names())
    assert f"{len(content) - 1} bytes, expected {len(content)}" in cut.what
    path.unlink()
    (gone,) = reader.verify()
    assert "No such file" in gone.what


def test_each_rank_sees_its_own_values_in_python(saved: Path) -> None:
    """A value that is one rank's own is stored under ``per_rank.<rank>.``; its Python state names it without."""
    reader = open_checkpoint(saved)
    own_name = {"extra.pair.0": "per_rank.0.extra.pair.0"}
    tensors = {own_name.get(name, name): info for name, info in reader.manifest.tensors.items()}
    assert len(tensors) == len(reader.names())
    assert "extra.pair.0" not in tensors
    own = datastates.CheckpointReader(reader.path, replace(reader.manifest, tensors=tensors))
    assert_same_bits(own.python()["extra"]["pair"][0], torch.ones(2))


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 100))
def test_batches_cover_all_extents_in_order(sizes: list[int], batch_bytes: int) -> None:
    bounds = [7, *(7 + total for total in itertools.accumulate(sizes))]
    groups = list(batches(bounds, batch_bytes))
    assert [i for group in groups for i in group] == list(range(len(sizes)))
    assert all(len(group) == 1 or bounds[group.stop] - bounds[group.start] <= batch_bytes for group in groups)


def test_verify_checks_what_the_manifest_says_of_every_tensor(saved: Path) -> None:
    """Opening does not: entries are checked when their tensors are asked for."""
    path = open_checkpoint(saved).path / manifest.FILE_NAME
    content = json.loads(path.read_bytes())
    content["tensors"]["extra.table"]["shape"] = [512, 511]
    del content["digest"]
    body = json.dumps(content, separators=(",", ":")).encode()[:-1]
    path.write_bytes(body + b',"digest":"sha256:%s"}\n' % hashlib.sha256(body).hexdigest().encode())
    (found,) = open_checkpoint(path.parent).verify()
    assert found.file == manifest.FILE_NAME
    assert "extra.table" in found.what
