"""Checkpoints behind a URL: listed, shown, verified, compared and exported as those of a directory."""

import gc
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from training import assert_same_bits

from datastates import DamagedCheckpointError, open_checkpoint

fsspec = pytest.importorskip("fsspec", reason="needs fsspec: pip install 'elastates[remote]'")
Ckpt = Callable[..., tuple[int, str]]
CkptJson = Callable[..., tuple[int, Any]]


@pytest.fixture
def url(run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The three checkpoints in fsspec's file system in memory; what is fetched goes below ``tmp_path``."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    where = f"memory://{tmp_path.name}/run"
    fsspec.filesystem("memory").put(f"{run_directory}/", where, recursive=True)
    return where


def flip(url: str) -> None:
    file = fsspec.filesystem("memory")
    path = f"{url}/step-00000004/rank-00000.safetensors"
    content = bytearray(file.cat_file(path))
    content[-1] ^= 1
    file.pipe_file(path, bytes(content))


def test_a_reader_of_a_url_reads_what_is_there_and_leaves_nothing(
    url: str, run_directory: Path, tmp_path: Path
) -> None:
    for place, local in ((url, "step-00000004"), (f"{url}/step-00000002", "step-00000002")):
        reader, expected = open_checkpoint(place), open_checkpoint(run_directory / local)
        assert reader.names() == expected.names()
        for name in reader.names():
            assert_same_bits(reader.read(name), expected.read(name), name)
        assert reader.python()["progress"] == expected.python()["progress"]
        assert len(list((tmp_path / "scratch").iterdir())) == 1
        del reader
        gc.collect()
        assert list((tmp_path / "scratch").iterdir()) == []


def test_a_damaged_newest_one_is_passed_over_and_one_that_was_named_is_refused(url: str, tmp_path: Path) -> None:
    flip(url)
    assert open_checkpoint(url).manifest.step == 2
    with pytest.raises(DamagedCheckpointError, match=r"step-00000004/rank-00000\.safetensors: checksum mismatch"):
        open_checkpoint(f"{url}/step-00000004")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        open_checkpoint(f"{url}/step-00000003")
    gc.collect()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_ls_of_a_url(url: str, ckpt_json: CkptJson) -> None:
    status, found = ckpt_json("ls", url)
    assert (status, [item["step"] for item in found["checkpoints"]]) == (0, [1, 2, 4])
    assert found["checkpoints"][0]["path"] == f"{url}/step-00000001"
    fsspec.filesystem("memory").rm(f"{url}/step-00000002/rank-00000.objects.json")
    status, found = ckpt_json("ls", url)
    assert (status, [item["state"] for item in found["checkpoints"]]) == (2, ["whole", "damaged", "whole"])
    assert "rank-00000.objects.json" in found["checkpoints"][1]["problem"]


def test_show_of_a_url_fetches_no_tensors(url: str, run_directory: Path, ckpt_json: CkptJson) -> None:
    status, found = ckpt_json("show", url)
    assert status == 0
    assert found.pop("path") == f"{url}/step-00000004"
    expected = ckpt_json("show", run_directory)[1]
    del expected["path"]
    assert found == expected
    fsspec.filesystem("memory").rm(f"{url}/step-00000004/rank-00000.safetensors")
    assert ckpt_json("show", run_directory)[0] == 0


def test_verify_of_a_url(url: str, ckpt: Ckpt) -> None:
    status, text = ckpt("verify", url, "--all")
    assert status == 0
    assert re.findall(r"step-0000000\d: whole", text) == [f"step-0000000{step}: whole" for step in (1, 2, 4)]
    flip(url)
    status, text = ckpt("verify", url)
    assert status == 2
    assert "rank-00000.safetensors: checksum mismatch" in text


def test_diff_and_export_read_urls(url: str, run_directory: Path, tmp_path: Path, ckpt: Ckpt) -> None:
    assert ckpt("diff", url, run_directory)[0] == 0
    assert ckpt("export", url, tmp_path / "x.safetensors", "--to", "safetensors", "--only", "data.*")[0] == 0
    assert_same_bits(load_file(tmp_path / "x.safetensors")["data.table"], open_checkpoint(url).read("data.table"))


@pytest.mark.parametrize(
    "words",
    [
        ("prune", "s3://bucket/run", "--keep-last", "1"),
        ("repair", "s3://bucket/run"),
        ("import", "model.pt", "s3://bucket/run"),
        ("export", ".", "s3://bucket/x", "--to", "dcp"),
        ("unarchive", "a.zarr", "s3://bucket/run"),
    ],
)
def test_what_writes_says_that_it_takes_no_url(words: tuple[str, ...], ckpt: Ckpt) -> None:
    status, text = ckpt(*words)
    assert status == 1
    assert "is a URL, and this works on directories of this machine" in text


def test_an_unknown_kind_of_url_is_an_error(ckpt: Ckpt) -> None:
    status, text = ckpt("ls", "nonsense://bucket/run")
    assert status == 1
    assert "nonsense" in text


def test_a_file_url_is_read_where_it_is(run_directory: Path, tmp_path: Path, ckpt: Ckpt) -> None:
    shutil.copytree(run_directory, tmp_path / "with space")
    place = f"file://{tmp_path}/with%20space"
    assert open_checkpoint(place).path == tmp_path / "with space" / "step-00000004"
    assert ckpt("ls", place)[0] == 0
