"""Archives: tensorstore, zarr-python and our reader read every bit back; nothing is seen that is not whole."""

import copy
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import torch
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kinds import every_kind, values_of
from rank_files import write_ranks
from training import assert_same_bits, bits

from datastates import DamagedCheckpointError, archive, open_archive, open_checkpoint
from datastates.zarr import archiving
from datastates.zarr.codecs import CODEC_NAMES
from datastates.zarr.data_types import register
from datastates.zarr.index import parse, seal
from oneflow_sbp import Box

import _elastates

Saved = tuple[Path, dict[str, torch.Tensor]]
SHARD_MB = 300e-6
register()  # zarr-python has no bfloat16 of its own


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 48 bytes, six to a file, so that small tensors lie in many."""
    monkeypatch.setattr(archiving, "CHUNK_BYTES", 48)


def found_bits(array: Any) -> bytes:
    return np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize("codec", [*CODEC_NAMES, "auto"])
@pytest.mark.usefixtures("small_chunks")
def test_everybody_reads_every_bit(four_ranks: Saved, tmp_path: Path, codec: str) -> None:
    directory, values = four_ranks
    report = archive(directory, tmp_path / "a.zarr", codec=codec, shard_mb=SHARD_MB, threads=3)
    assert (report.path, report.step) == (tmp_path / "a.zarr", 7)
    assert report.stored_bytes == sum(path.stat().st_size for path in report.path.rglob("*") if path.is_file())
    group = zarr.open_group(report.path, mode="r")
    ours = open_archive(report.path)
    for name, value in values.items():
        key = name.replace(".", "/")
        assert found_bits(group[key][...]) == bits(value), name
        theirs = tensorstore.open({"driver": "zarr3", "kvstore": f"file://{report.path / key}/"}).result()
        assert found_bits(theirs.read().result()) == bits(value), name
        assert_same_bits(ours.read(name), value, name)
    assert ours.verify() == []
    assert "sharding_indexed" in (report.path / "kinds/float32/zarr.json").read_text()


@pytest.mark.usefixtures("small_chunks")
def test_the_rest_is_there_too(four_ranks: Saved, tmp_path: Path) -> None:
    source = open_checkpoint(four_ranks[0])
    archive(source, tmp_path / "a.zarr", shard_mb=SHARD_MB)
    found = open_archive(tmp_path / "a.zarr")
    assert found.names() == source.names()
    for member in ("step", "num_ranks", "aliases", "metadata", "created_unix_s"):
        assert getattr(found.manifest, member) == getattr(source.manifest, member)
    for rank in range(4):
        assert found.objects_text(rank) == source.objects_text(rank)
        assert found.python(rank) == {"epoch": rank, "pair": (1, 2)}
    assert_same_bits(found.read("kinds.tied"), source.read("kinds.float32"))
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert group.attrs["python"]["epoch"] == 0
    assert json.loads(bytes(group["python_state/3"][...]))["epoch"] == 3
    assert sorted(group.group_keys()) == ["kinds", "python_state", "shapes"]


@pytest.mark.usefixtures("small_chunks")
def test_a_part_is_read_from_the_files_that_hold_it(tmp_path: Path) -> None:
    value = values_of(torch.int32, (40, 30))
    archive(write_ranks(tmp_path / "run", {"t": value}, {}, [{}]), tmp_path / "a.zarr", shard_mb=SHARD_MB, codec="zstd")
    found = open_archive(tmp_path / "a.zarr")
    box = Box((11, 7), (5, 20))
    for path in (tmp_path / "a.zarr/t/c").rglob("*"):
        if path.is_file():
            index = tuple(map(int, path.relative_to(tmp_path / "a.zarr/t/c").parts))
            if found.array("t").layout.files.inner(index).intersect(box) is None:
                path.unlink()
    assert_same_bits(found.read("t", box), value[11:16, 7:27].contiguous())
    with pytest.raises(DamagedCheckpointError, match=r"t/c/\d/0: No such file or directory"):
        found.read("t")


@pytest.mark.usefixtures("small_chunks")
def test_a_flipped_bit_in_any_file_is_named(tmp_path: Path) -> None:
    values = {"m.t": values_of(torch.float32, (20, 9)), "m.s": values_of(torch.bfloat16, ()), "n": torch.zeros(0)}
    path = write_ranks(tmp_path / "run", values, {}, [{"lr": 0.1}])
    archive(path, tmp_path / "a.zarr", shard_mb=SHARD_MB, codec="blosc-zstd-shuffle")
    files = sorted(p for p in (tmp_path / "a.zarr").rglob("*") if p.is_file())
    generator = np.random.default_rng(0)
    assert len(files) > 8
    for file in files:
        key = str(file.relative_to(tmp_path / "a.zarr"))
        whole = file.read_bytes()
        for _ in range(8):
            damaged = bytearray(whole)
            damaged[generator.integers(len(whole))] ^= 1 << int(generator.integers(8))
            file.write_bytes(damaged)
            check_damage(tmp_path / "a.zarr", key, values)
        file.write_bytes(whole[:-1])
        check_damage(tmp_path / "a.zarr", key, values)
        file.write_bytes(whole)
    assert open_archive(tmp_path / "a.zarr").verify() == []


def check_damage(path: Path, key: str, values: dict[str, torch.Tensor]) -> None:
    """``key`` is damaged: whoever needs it says so, and verify() names it alone."""
    if key == "zarr.json":
        with pytest.raises(DamagedCheckpointError, match=r"a.zarr/zarr.json"):
            open_archive(path)
        return
    (damage,) = open_archive(path).verify()
    assert damage.file == key
    assert damage.what
    owner = next((name for name in values if key.startswith(f"{name.replace('.', '/')}/")), None)
    assert damage.tensors == ((owner,) if owner else ())
    if owner:
        with pytest.raises(DamagedCheckpointError, match=key.replace(".", r"\.")):
            open_archive(path).read(owner) if "/c" in key else open_archive(path).array(owner)
    elif key.startswith("python_state/0/"):
        with pytest.raises(DamagedCheckpointError, match="python_state/0"):
            open_archive(path).objects_text(0)


@pytest.mark.usefixtures("small_chunks")
def test_other_readers_see_a_flipped_bit(tmp_path: Path) -> None:
    value = values_of(torch.int64, (20, 9))
    archive(write_ranks(tmp_path / "run", {"t": value}, {}, [{}]), tmp_path / "a.zarr", shard_mb=SHARD_MB, codec="zstd")
    file = tmp_path / "a.zarr/t/c/0/0"
    damaged = bytearray(file.read_bytes())
    damaged[10] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_array(tmp_path / "a.zarr/t", mode="r")[...]
    store = tensorstore.open({"driver": "zarr3", "kvstore": f"file://{tmp_path}/a.zarr/t/"}).result()
    with pytest.raises(ValueError, match="Digest mismatch"):
        store.read().result()


def test_damage_in_the_checkpoint_leaves_no_archive(tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "run", {"t": values_of(torch.int64, (20, 9))}, {}, [{}])
    content = bytearray((path / "rank-00000.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "rank-00000.safetensors").write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="which hold t"):
        archive(path, tmp_path / "a.zarr")
    assert os.listdir(tmp_path) == ["run"]


def test_nothing_is_overwritten(four_ranks: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(FileExistsError, match="exists and is not overwritten"):
        archive(four_ranks[0], tmp_path / "a.zarr")
    monkeypatch.setattr(Path, "exists", lambda self: False)  # it comes to be while we write
    with pytest.raises(FileExistsError, match="exists and is not overwritten"):
        archive(four_ranks[0], tmp_path / "a.zarr", codec="none")
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_what_dead_writers_left_is_removed(four_ranks: Saved, tmp_path: Path) -> None:
    dead, alive = tmp_path / ".archive-a.zarr-00000001", tmp_path / ".archive-a.zarr-00000002"
    for left in (dead, alive):
        (left / "kinds").mkdir(parents=True)
    fd = os.open(alive, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        archive(four_ranks[0], tmp_path / "a.zarr", codec="none")
    finally:
        os.close(fd)
    assert sorted(os.listdir(tmp_path)) == [alive.name, "a.zarr"]


@pytest.mark.parametrize("name", ["step-00000013", "*"])
def test_attempts_of_a_writer_of_checkpoints_are_left_alone(four_ranks: Saved, tmp_path: Path, name: str) -> None:
    """An archive may be put beside the checkpoints, under whatever name."""
    attempt, other = tmp_path / ".tmp-step-00000013-0a1b2c3d", tmp_path / ".archive-b.zarr-0a1b2c3d"
    attempt.mkdir()
    other.mkdir()
    archive(four_ranks[0], tmp_path / name, codec="none")
    assert sorted(os.listdir(tmp_path)) == sorted([attempt.name, other.name, name])


@pytest.mark.parametrize("shard_mb", [0, -1, float("nan")])
def test_a_shard_has_a_size(four_ranks: Saved, tmp_path: Path, shard_mb: float) -> None:
    with pytest.raises(ValueError, match=r"shard_mb is \S+, expected more than 0"):
        archive(four_ranks[0], tmp_path / "a.zarr", shard_mb=shard_mb)


def test_all_is_synced_before_the_rename(four_ranks: Saved, tmp_path: Path) -> None:
    _elastates.start_recording()
    try:
        archive(four_ranks[0], tmp_path / "a.zarr", codec="none", threads=1)
        operations = _elastates.take_recording()
    finally:
        _elastates.stop_recording()
    ops = [operation["op"] for operation in operations]
    (rename,) = (i for i, op in enumerate(ops) if op.startswith("rename"))
    temporary = operations[rename]["path"]
    synced = {operation["path"] for operation in operations[:rename] if "sync" in operation["op"]}
    for path in [tmp_path / "a.zarr", *(tmp_path / "a.zarr").rglob("*")]:
        assert str(path).replace(str(tmp_path / "a.zarr"), temporary) in synced, path
    assert str(tmp_path) in {operation["path"] for operation in operations[rename:] if "sync" in operation["op"]}


def test_a_thread_has_one_shard_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = values_of(torch.float32, (1000, 100))
    reader = open_checkpoint(write_ranks(tmp_path / "run", {"t": value}, {}, [{}]))
    sizes: list[int] = []
    read = reader.read

    def counted(name: str, box: Box | None = None, **options: Any) -> torch.Tensor:
        found = read(name, box, **options)
        sizes.append(found.nbytes)
        return found

    monkeypatch.setattr(reader, "read", counted)
    seen: list[tuple[int, int]] = []
    archive(reader, tmp_path / "a.zarr", codec="none", shard_mb=0.04, progress=lambda *done: seen.append(done))
    assert max(sizes) <= 40_000
    assert sum(sizes) == value.nbytes
    assert seen[-1] == (value.nbytes, value.nbytes)
    assert seen == sorted(seen)


def test_kinds_have_codecs_of_their_own(tmp_path: Path) -> None:
    values = {
        "model.a.weight": torch.randn(300, 200, generator=torch.Generator().manual_seed(0)),
        "model.b.weight": torch.randn(300, 200, generator=torch.Generator().manual_seed(1)),
        "optimizer.state.a.exp_avg": torch.zeros(300, 200),
        "optimizer.state.a.step": torch.tensor(3.0),
        "noise": values_of(torch.uint8, (200_000,)),
    }
    path = write_ranks(tmp_path / "run", values, {}, [{}])
    report = archive(path, tmp_path / "a.zarr", min_mb_s=0)
    assert set(report.codecs) == {
        "float32 model weight",
        "float32 optimizer exp_avg",
        "float32",
        "uint8 noise noise",
    }
    assert report.codecs["uint8 noise noise"] == "none"
    assert report.codecs["float32"] == "none"
    assert "shuffle" in report.codecs["float32 model weight"]
    ratios = {m.codec: m.ratio for m in report.measured["float32 optimizer exp_avg"]}
    assert list(ratios) == list(CODEC_NAMES)
    assert ratios[report.codecs["float32 optimizer exp_avg"]] > 50
    assert report.ratio > 1


def test_an_archive_can_be_archived_with_another_codec(four_ranks: Saved, tmp_path: Path) -> None:
    archive(four_ranks[0], tmp_path / "a.zarr", codec="none")
    archive(open_archive(tmp_path / "a.zarr"), tmp_path / "b.zarr", codec="zstd")
    found = open_archive(tmp_path / "b.zarr")
    for name, value in four_ranks[1].items():
        assert_same_bits(found.read(name), value, name)
    assert found.objects_text(2) == open_checkpoint(four_ranks[0]).objects_text(2)


def test_wrong_arguments_are_refused(four_ranks: Saved, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"codec is 'lzma', expected one of auto, none, zstd"):
        archive(four_ranks[0], tmp_path / "a.zarr", codec="lzma")
    with pytest.raises(FileNotFoundError):
        open_archive(tmp_path / "nowhere")
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(
        DamagedCheckpointError, match=r"this is not the zarr.json of an archive: KeyError\('elastates'\)"
    ):
        open_archive(tmp_path / "other.zarr")


def test_an_index_cannot_lead_outside(four_ranks: Saved, tmp_path: Path) -> None:
    archive(four_ranks[0], tmp_path / "a.zarr", codec="none")
    root = json.loads((tmp_path / "a.zarr/zarr.json").read_bytes())
    del root["attributes"]["elastates"]["digest"]
    about = root["attributes"]["elastates"]
    about["format_version"] = 2
    with pytest.raises(ValueError, match="archive version 2 is newer than 1"):
        parse(seal(root))
    about["format_version"] = 1
    assert parse(seal(root)).manifest.step == 7
    for path in ("../../etc/passwd", "/etc/passwd", "kinds//float32", "."):
        about["tensors"]["kinds.float32"]["path"] = path
        with pytest.raises(ValueError, match="is not a path inside the archive"):
            parse(seal(root))


JUNK = [None, -1, 1 << 70, 1.5, "", "../x", "float99", [], {}, [[]], {"a": 1}, True]


@pytest.fixture(scope="module")
def root_document(four_ranks: Saved, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("archive") / "a.zarr"
    archive(four_ranks[0], path, codec="none")
    document: dict[str, Any] = json.loads((path / "zarr.json").read_bytes())
    del document["attributes"]["elastates"]["digest"]
    return document


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_hostile_index_is_refused_or_harmless(root_document: dict[str, Any], data: st.DataObject) -> None:
    document = copy.deepcopy(root_document)
    place: Any = document["attributes"]["elastates"]
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.integers(0, 3)) == 0:
            break
        place = place[key]
    place[key] = data.draw(st.sampled_from(JUNK))
    try:
        found = parse(seal(document))
    except ValueError:
        return
    for path in [*found.paths.values(), *found.files, *(objects.name for objects in found.manifest.objects)]:
        assert ".." not in path.split("/")


def test_every_kind_is_what_the_fixture_says() -> None:
    assert len({value.dtype for value in every_kind().values()}) == 20
