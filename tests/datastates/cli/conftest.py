"""A directory of three checkpoints, and the command line in this process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training import train_step, trained

from datastates import Checkpointer
from datastates.cli import main

STEPS = (1, 2, 4)


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    """Steps 1, 2 and 4 of a small training, with a table of several extents that does not change."""
    model, optimizer = trained()
    table = torch.arange(256 * 256.0).reshape(256, 256)
    with Checkpointer(tmp_path / "run", keep_last=None, chunk_bytes=64 << 10) as checkpoints:
        for step in STEPS:
            train_step(model, optimizer, seed=step)
            state = {"model": model, "optimizer": optimizer, "data": {"table": table}, "progress": {"step": step}}
            checkpoints.checkpoint(step, state, metadata={"loss": step / 2}).durable.result(60)
    return tmp_path / "run"


@pytest.fixture
def ckpt(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run a command; gives its exit status and all that it printed."""

    def run(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        status = main([str(word) for word in words])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


@pytest.fixture
def ckpt_json(ckpt: Callable[..., tuple[int, str]]) -> Callable[..., tuple[int, Any]]:
    """The same with ``--json``; gives the exit status and the document."""

    def run(*words: object) -> tuple[int, Any]:
        status, text = ckpt(*words, "--json")
        return status, json.loads(text)

    return run


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.fixture
def damage_table(run_directory: Path) -> Callable[[int], Path]:
    """Flip a bit of the table's first row in the checkpoint of a step; gives the file."""
    from datastates import open_checkpoint

    def damage(step: int) -> Path:
        path = run_directory / f"step-{step:08d}"
        (shard,) = open_checkpoint(path).info("data.table").shards
        flip(path / "rank-00000.safetensors", shard.begin)
        return path / "rank-00000.safetensors"

    return damage
