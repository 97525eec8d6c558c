"""The command itself: help, usage errors, exit statuses, conversions, progress on a terminal, pipes and Ctrl-C."""

import os
import pty
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training import assert_same_bits

from datastates import open_checkpoint
from elaswave import cli

Ckpt = Callable[..., tuple[int, str]]
COMMAND = [sys.executable, "-m", "elaswave.cli"]


def run(*words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, timeout=60, check=False)


def test_the_installed_command_is_this_one() -> None:
    scripts = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["elastates"].partition(":")
    assert getattr(import_module(module), function) is cli.main


def test_help_and_a_list_of_nothing_need_no_torch(tmp_path: Path) -> None:
    words = [["--help"], ["ckpt", "--help"], ["ckpt", "ls", str(tmp_path)]]
    code = f"import sys, elaswave.cli as c; s = max(map(c.main, {words})); sys.exit(s + 10 * ('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "ckpt" in done.stdout


def test_groups_have_exit_statuses_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 1
    assert cli.main(["nonsense"]) == 1
    assert "ckpt" in capsys.readouterr().err
    assert cli.main(["ckpt", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "2    damage was found" in printed
    for command in ("ls", "show", "verify", "diff", "repair", "export", "import", "prune"):
        assert f"\n    {command} " in printed
        assert cli.main(["ckpt", command, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: elastates ckpt {command}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lst"], "invalid choice: 'lst'"),
        (["verify"], "required: path"),
        (["verify", "/nowhere/at/all"], "/nowhere/at/all holds no checkpoint"),
        (["show", "/nowhere/at/all"], "expected manifest.json or directories step-<step>"),
        (["prune", "/tmp", "--keep-last", "0"], "invalid"),
        (["export", "a", "b", "--to", "onnx"], "invalid choice: 'onnx'"),
        (["export", "a", "b", "--to", "hf", "--dtype", "float3"], "invalid dtype_of value: 'float3'"),
        (["import", "/nowhere/x.pt", "b"], "/nowhere/x.pt does not exist"),
    ],
)
def test_wrong_usage_is_said_and_exits_with_1(ckpt: Ckpt, words: list[str], message: str) -> None:
    status, text = ckpt(*words)
    assert (status, text.startswith("elastates ckpt: ")) == (1, True)
    assert message in text


def test_the_real_command(run_directory: Path, damage_table: Callable[[int], Path]) -> None:
    listed = run("ckpt", "ls", run_directory)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert listed.stdout.splitlines()[-1].split()[0] == "4"
    damage_table(4)
    verified = subprocess.run(
        [sys.executable, "-m", "datastates.cli", "verify", run_directory], capture_output=True, timeout=60, check=False
    )
    assert (verified.returncode, verified.stderr) == (2, b"")


def test_export_and_import(run_directory: Path, tmp_path: Path, ckpt: Ckpt) -> None:
    out = tmp_path / "m.safetensors"
    words = ["--to", "safetensors", "--only", "model.*", "--strip", "model.", "--dtype", "bfloat16"]
    status, text = ckpt("export", run_directory, out, *words)
    assert (status, text.startswith(f"{out}: ")) == (0, True)
    assert load_file(out)["0.weight"].dtype == torch.bfloat16
    status, text = ckpt("export", run_directory, out, *words)
    assert (status, "exists already" in text) == (1, True)
    status, text = ckpt("import", out, tmp_path / "new", "--step", 7, "--prefix", "net.")
    assert (status, "step-00000007" in text) == (0, True)
    assert_same_bits(
        open_checkpoint(tmp_path / "new").read("net.0.weight"),
        open_checkpoint(run_directory).read("model.0.weight").bfloat16(),
    )
    status, _ = ckpt("export", run_directory, tmp_path / "hf", "--to", "hf", "--max-shard-size", "1kB")
    assert (status, (tmp_path / "hf" / "model.safetensors.index.json").exists()) == (0, False)  # the model is smaller


def test_progress_is_shown_on_a_terminal_and_nowhere_else(run_directory: Path) -> None:
    leader, follower = pty.openpty()
    done = subprocess.run(
        [*COMMAND, "ckpt", "verify", run_directory], stdout=subprocess.PIPE, stderr=follower, timeout=60, check=True
    )
    os.close(follower)
    shown = os.read(leader, 10_000).decode()
    os.close(leader)
    assert "verify step-00000004: " in shown
    assert "(100%)" in shown
    assert b"(100%)" not in done.stdout
    assert run("ckpt", "verify", run_directory).stderr == ""


def test_a_reader_that_leaves_early_is_no_error(run_directory: Path) -> None:
    first_line = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {' '.join(COMMAND)} ckpt show {run_directory} --tensors | head -n 1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (first_line.returncode, first_line.stderr) == (0, "")


def test_ctrl_c_exits_with_130(ckpt: Ckpt, run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("datastates.reader.CheckpointReader.verify", interrupt)
    assert ckpt("verify", run_directory) == (130, "elastates ckpt: interrupted\n")
