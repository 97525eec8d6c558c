"""``elastates ckpt archive`` and ``unarchive``: there and back, with useful words and exit statuses."""

import json
from pathlib import Path

import pytest
import torch
from kinds import values_of
from rank_files import write_ranks
from training import assert_same_bits

from datastates import cli, open_archive, open_checkpoint


@pytest.fixture
def run_directory(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    value = values_of(torch.float32, (100, 40))
    write_ranks(tmp_path / "run", {"model.w": value}, {}, [{"lr": 0.1}])
    return tmp_path / "run", value


def test_there_and_back(
    run_directory: tuple[Path, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, value = run_directory
    assert cli.main(["archive", str(path), str(tmp_path / "a.zarr"), "--codec", "zstd"]) == cli.OK
    assert "a.zarr: step 7, 16 kB in " in capsys.readouterr().out
    assert_same_bits(open_archive(tmp_path / "a.zarr").read("model.w"), value)
    assert cli.main(["unarchive", str(tmp_path / "a.zarr"), str(tmp_path / "again")]) == cli.OK
    assert "step-00000007: written and verified" in capsys.readouterr().out
    assert_same_bits(open_checkpoint(tmp_path / "again").read("model.w"), value)


def test_json_has_the_figures(
    run_directory: tuple[Path, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["archive", str(run_directory[0]), str(tmp_path / "a.zarr"), "--json"]) == cli.OK
    report = json.loads(capsys.readouterr().out)
    assert (report["step"], report["raw_bytes"]) == (7, 16_000 + len('{"lr": 0.1}'))
    assert report["ratio"] == report["raw_bytes"] / report["stored_bytes"]


def test_what_goes_wrong_has_a_status(
    run_directory: tuple[Path, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "a.zarr")
    assert cli.main(["archive", str(run_directory[0]), out, "--codec", "lzma"]) == cli.ERROR
    assert "codec is 'lzma', expected one of auto" in capsys.readouterr().err
    assert cli.main(["archive", str(run_directory[0]), out]) == cli.OK
    assert cli.main(["archive", str(run_directory[0]), out]) == cli.ERROR
    assert "exists and is not overwritten" in capsys.readouterr().err
    file = tmp_path / "a.zarr/model/w/c/0/0"
    file.write_bytes(file.read_bytes()[:-1])
    assert cli.main(["unarchive", out, str(tmp_path / "again")]) == cli.DAMAGED
    assert "truncated or altered" in capsys.readouterr().err
