"""dcp.save and dcp.load through our storage writer and reader, on several ranks."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from launching import Launched, Launcher
from torch.distributed.checkpoint import HuggingFaceStorageReader

JOB = Path(__file__).with_name("dcp_job.py")


def start(launch: Launcher, scenario: str, directory: Path, num_ranks: int) -> list[Launched]:
    store = directory.parent / f"{scenario}-{num_ranks}"
    # torch looks up the names of peers' addresses, which takes 5 s where nobody answers.
    env = {"GLOO_SOCKET_IFNAME": "lo", "RES_OPTIONS": "timeout:1 attempts:1", "MASTER_ADDR": "127.0.0.1"}
    return launch.ranks(JOB, scenario, store, directory, num_ranks=num_ranks, port=0, env=env)


def results(ranks: list[Launched], name: str) -> list[Any]:
    return [json.loads(rank.wait_for(rf"^RESULT {re.escape(name)} (.*)$", timeout_s=100)[1]) for rank in ranks]


@pytest.mark.filterwarnings("ignore:torch.distributed is (disabled, )?unavailable or uninitialized:UserWarning")
def test_three_ranks_save_and_two_load(launch: Launcher, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    saving = start(launch, "save", directory, 3)
    assert results(saving, "saved") == [True] * 3
    loading = start(launch, "load", directory, 2)
    for step in range(3):
        assert results(loading, f"step {step}") == [[[], [], {"epoch": 3, "of": [1, 2]}]] * 2
    for rank in (*saving, *loading):
        rank.wait()

    expected = torch.load(directory / "expected.pt")
    found = {name: torch.zeros_like(expected[name]) for name in ("rows", "columns", "same", "few_rows", "plain")}
    stock = HuggingFaceStorageReader(str(directory / "step-00000002"))
    dcp.load(found, storage_reader=stock, no_dist=True)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_damage_on_one_rank_makes_all_fall_back_and_failure_of_one_publishes_nothing(
    launch: Launcher, tmp_path: Path
) -> None:
    ranks = start(launch, "damage_and_failure", tmp_path / "run", 2)
    for text in results(ranks, "named"):
        assert re.search(r"step-00000002/rank-00001.safetensors: checksum mismatch in bytes .* which hold w", text)
    assert results(ranks, "fell back") == [[[1.0], 1]] * 2
    for text in results(ranks, "failed"):
        assert re.search(r"ranks:dict_keys\(\[1\]\)", text)
        assert re.search(r"CheckpointError: .*Input/output error", text)
    steps = [f"step-{step:08d}" for step in range(4)]
    assert results(ranks, "left") == [steps] * 2
    whole, torn = results(ranks, "torn")
    assert re.search("w: the stored boxes hold 16 of 32 elements", whole)
    assert torn == ""
    for rank in ranks:
        rank.wait()
