"""ls, show, verify, diff: what they say is so, and the exit status says it too."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datastates import Checkpointer, open_checkpoint
from datastates.cli.compare import compare_values
from datastates.cli.output import age_text, bar, size_of, size_text, table
from datastates.directory import CheckpointDirectory

Ckpt = Callable[..., tuple[int, str]]
CkptJson = Callable[..., tuple[int, Any]]


def test_ls_lists_steps_sizes_ranks_and_states(run_directory: Path, ckpt: Ckpt, ckpt_json: CkptJson) -> None:
    status, text = ckpt("ls", run_directory)
    assert status == 0
    lines = text.splitlines()
    assert lines[0].split() == ["step", "size", "age", "ranks", "tensors", "state"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "4"]
    assert all(line.split()[-1] == "whole" for line in lines[1:])
    status, document = ckpt_json("ls", run_directory)
    newest = document["checkpoints"][-1]
    size = sum(path.stat().st_size for path in (run_directory / "step-00000004").iterdir())
    assert (status, newest["step"], newest["size_bytes"], newest["num_ranks"]) == (0, 4, size, 1)
    assert document["written_by"] is None


def test_ls_shows_damage_leftovers_and_who_writes(run_directory: Path, ckpt: Ckpt, ckpt_json: CkptJson) -> None:
    with Checkpointer(run_directory) as checkpoints:
        checkpoints.checkpoint(5, {"x": torch.ones(1)}).durable.result(60)
        _, text = ckpt("ls", run_directory)
        assert "being written by " in text
        assert ckpt_json("ls", run_directory)[1]["written_by"].split()[-2] == "pid"
    (run_directory / "step-00000005" / "manifest.json").write_bytes(b"{}")
    (run_directory / ".tmp-step-00000006-00000000").mkdir()
    (run_directory / "damaged-step-00000003-00000000").mkdir()
    status, text = ckpt("ls", run_directory)
    assert status == 2
    assert "step-00000005/manifest.json: the manifest's own SHA-256 does not match" in text
    assert "1 dead attempts" in text
    assert "set aside: damaged-step-00000003-00000000" in text


def test_ls_of_nothing(tmp_path: Path, ckpt: Ckpt) -> None:
    assert ckpt("ls", tmp_path) == (0, f"no checkpoints in {tmp_path}\n")
    assert ckpt("ls", tmp_path / "x") == (1, f"elastates ckpt: {tmp_path / 'x'} is no directory\n")


def test_show_draws_modules_sections_types_and_ranks(run_directory: Path, ckpt: Ckpt, ckpt_json: CkptJson) -> None:
    status, text = ckpt("show", run_directory, "--tensors")
    assert status == 0
    assert 'metadata: {"loss": 2.0}' in text
    for expected in ("data.table", "  table", "optimizer (optimizer)", "model (tensors)", "float32", "rank-00000", "█"):
        assert expected in text
    _, document = ckpt_json("show", run_directory, "--depth", "1")
    children = document["modules"]["children"]
    assert set(children) == {"model", "optimizer", "data"}
    assert children["data"]["size_bytes"] == 256 * 256 * 4
    assert sum(child["size_bytes"] for child in children.values()) == document["data_bytes"]
    assert document["sections"]["data"] == {"kind": "Python values and tensors", "size_bytes": 256 * 256 * 4}


def test_verify_names_file_range_and_tensors(
    run_directory: Path, ckpt: Ckpt, ckpt_json: CkptJson, damage_table: Callable[[int], Path]
) -> None:
    status, text = ckpt("verify", run_directory)
    assert (status, text.count("whole")) == (0, 1)
    damage_table(2)
    assert ckpt("verify", run_directory)[0] == 0
    status, text = ckpt("verify", run_directory, "--all")
    assert (status, text.count(": whole;")) == (2, 2)
    assert "step-00000002: 1 damaged ranges" in text
    assert "checksum mismatch in bytes [" in text
    assert "tensors data.table" in text
    status, reports = ckpt_json("verify", run_directory / "step-00000002")
    assert (status, reports[0]["damage"][0]["tensors"]) == (2, ["data.table"])
    (run_directory / "step-00000004" / "manifest.json").unlink()
    assert ckpt("verify", run_directory)[0] == 2


def test_diff_names_what_changed(run_directory: Path, ckpt: Ckpt, ckpt_json: CkptJson) -> None:
    a, b = run_directory / "step-00000001", run_directory / "step-00000002"
    assert ckpt("diff", a, a) == (0, f"A {a}\nB {a}\nno differences\n")
    status, text = ckpt("diff", a, b)
    assert status == 3
    assert "model.0.weight" in text
    assert "data.table" not in text
    assert "progress.step" in text
    status, document = ckpt_json("diff", a, b)
    found = {item["name"]: item for item in document["tensors"]}
    one, two = (open_checkpoint(path).read("model.0.weight") for path in (a, b))
    assert found["model.0.weight"]["max_abs"] == pytest.approx(float((one - two).abs().max()))
    assert found["model.0.weight"]["num_changed"] == int((one != two).sum())
    assert found["model.0.weight"]["num_elements"] == 30
    assert {"rank": 0, "path": "progress.step", "a": "1", "b": "2"} in document["python"]
    assert ckpt("diff", a, b, "--only", "data.*")[0] == 0


def test_diff_names_what_one_side_lacks(tmp_path: Path, ckpt_json: CkptJson) -> None:
    states = (
        {"x": torch.ones(2), "y": torch.ones(3), "z": torch.ones(1), "note": (1, 2)},
        {"x": torch.ones(2, 1), "y": torch.ones(3).double(), "w": torch.ones(1), "note": [1, 2]},
    )
    for name, state in zip("ab", states, strict=True):
        with Checkpointer(tmp_path / name) as checkpoints:
            checkpoints.checkpoint(0, state).durable.result(60)
    status, document = ckpt_json("diff", tmp_path / "a", tmp_path / "b")
    found = {item["name"]: (item["what"], item["a"], item["b"]) for item in document["tensors"]}
    assert status == 3
    assert found == {
        "x": ("shape", "float32[2]", "float32[2, 1]"),
        "y": ("type", "float32[3]", "float64[3]"),
        "z": ("only in A", "float32[1]", None),
        "w": ("only in B", None, "float32[1]"),
    }
    assert [item["path"] for item in document["python"]] == ["note"]


def test_diff_of_large_tensors_adds_up_over_pieces(
    tmp_path: Path, ckpt_json: CkptJson, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datastates.convert.source.PIECE_BYTES", 1000)
    values = torch.zeros(100, 30)
    for name, changed in (("a", {}), ("b", {(0, 0): 1.0, (50, 2): -3.0, (99, 29): float("nan")})):
        for at, value in changed.items():
            values[at] = value
        with Checkpointer(tmp_path / name) as checkpoints:
            checkpoints.checkpoint(0, {"v": values.clone(), "tail": torch.ones(4)}).durable.result(60)
    (found,) = ckpt_json("diff", tmp_path / "a", tmp_path / "b")[1]["tensors"]
    assert (found["num_changed"], found["max_abs"], found["num_not_finite"]) == (3, 3.0, 1)
    assert found["num_elements"] == 3000


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.complex128]
)
def test_values_are_compared_bit_by_bit_in_every_type(dtype: torch.dtype) -> None:
    a = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    assert compare_values("x", a, a.clone()) is None
    b = a.clone()
    b[1, 1] = 1
    found = compare_values("x", a, b)
    assert found is not None
    assert (found.num_changed, found.max_abs) == (1, 1.0)


def test_zeros_of_other_sign_differ_and_equal_nans_do_not() -> None:
    found = compare_values("x", torch.tensor([0.0, torch.nan]), torch.tensor([-0.0, torch.nan]))
    assert found is not None
    assert (found.num_changed, found.max_abs, found.num_not_finite) == (1, 0.0, 0)


@given(st.integers(1, 10**15))
def test_sizes_can_be_read_back(size_bytes: int) -> None:
    assert size_of(size_text(size_bytes)) == pytest.approx(size_bytes, rel=0.006)


def test_texts() -> None:
    assert [size_text(n) for n in (0, 999, 1000, 1_020_000, 999_900_000)] == [
        "0 B",
        "999 B",
        "1 kB",
        "1.02 MB",
        "1000 MB",
    ]
    assert [age_text(s) for s in (-1, 59, 60, 7300, 200_000)] == ["0 s", "59 s", "1 min", "2 h", "2 d"]
    assert table(("a", "bb"), [["1", "2"], ["33", "4"]], right=(0,)) == " a  bb\n 1  2\n33  4"
    assert (bar(1, 2), bar(0, 2), bar(0, 0)) == ("█" * 12, "", "")
    with pytest.raises(ValueError, match=r"'0GB' is no size; write for example 5GB"):
        size_of("0GB")
    with pytest.raises(ValueError, match="is no size"):
        size_of("infGB")


def test_what_a_job_removes_while_it_is_looked_at_is_not_damaged(
    run_directory: Path, ckpt: Ckpt, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = CheckpointDirectory.steps

    def steps_of_which_one_goes(directory: CheckpointDirectory) -> list[int]:
        found = listed(directory)
        if directory.path == run_directory:
            shutil.rmtree(directory.of_step(found[0]))
        return found

    monkeypatch.setattr(CheckpointDirectory, "steps", steps_of_which_one_goes)
    for words in (("ls", run_directory), ("verify", "--all", run_directory)):
        status, text = ckpt(*words)
        assert status == 0, text
        assert "damaged" not in text
