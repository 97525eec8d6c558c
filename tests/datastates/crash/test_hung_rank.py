"""A rank that hangs: the other one says so in time, nothing is published, and the checkpoint before is there."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import torch
from launching import Launched, Launcher

from datastates import Checkpointer

JOB = Path(__file__).with_name("ranks_job.py")


def start(launch: Launcher, scenario: str, store: Path, directory: Path) -> list[Launched]:
    return launch.ranks(JOB, scenario, store, directory, num_ranks=2, port=0, env={"GLOO_SOCKET_IFNAME": "lo"})


def result(rank: Launched, name: str) -> Any:
    return json.loads(rank.wait_for(f"RESULT {name} (.*)").group(1))


def test_a_hung_rank_is_named_and_costs_that_checkpoint_alone(launch: Launcher, tmp_path: Path) -> None:
    ranks = start(launch, "hang", tmp_path / "store", tmp_path / "run")
    pid = result(ranks[1], "pid")
    error, steps = result(ranks[0], "outcome")
    assert re.match(r"CoordinationError: .*no answer from rank 1 within 3 s \(dead, hung", error)
    assert steps == [0]
    os.kill(pid, signal.SIGCONT)
    error, steps = result(ranks[1], "outcome")
    assert re.match(r"(Coordination|Checkpoint)Error: checkpoint of step 1 on rank 1", error)
    assert steps == [0]
    for rank in ranks:
        rank.wait()
    found = {"values": torch.zeros(1000)}
    with Checkpointer(tmp_path / "run") as checkpoints:
        assert checkpoints.restore(found) == 1
    assert found["values"].sum() == 0


def test_all_ranks_hear_that_rank_0_cannot_make_the_directory(launch: Launcher, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    ranks = start(launch, "refuse", tmp_path / "store", tmp_path / "file" / "run")
    assert re.match(r"NotADirectoryError: .*making .*file/run: Not a directory", result(ranks[0], "outcome"))
    assert re.match(r"NotOneDirectoryError: rank 0 cannot write to .*file/run", result(ranks[1], "outcome"))
    for rank in ranks:
        rank.wait()
