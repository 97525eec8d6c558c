"""dcp.save and dcp.load through our storage writer and reader, on three ranks; one job, because starting it is dear."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from launching import Launcher
from torch.distributed.checkpoint import HuggingFaceStorageReader

JOB = Path(__file__).with_name("dcp_job.py")
NUM_RANKS = 3


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dcp")


@pytest.fixture(scope="module")
def results(directory: Path) -> Callable[[str], list[Any]]:
    """What every rank reported under a name, of those that did."""
    launcher = Launcher(cwd=directory)
    # torch looks up the names of peers' addresses, which takes 5 s where nobody answers.
    env = {"GLOO_SOCKET_IFNAME": "lo", "RES_OPTIONS": "timeout:1 attempts:1", "MASTER_ADDR": "127.0.0.1"}
    ranks = launcher.ranks(JOB, directory / "store", directory, num_ranks=NUM_RANKS, port=0, env=env)
    try:
        for rank in ranks:
            rank.wait(timeout_s=100)
    finally:
        launcher.close()
    lines = [line for rank in ranks for line in rank.output.splitlines()]

    def found(name: str) -> list[Any]:
        matches = [re.match(rf"RESULT {re.escape(name)} (.*)$", line) for line in lines]
        return [json.loads(match[1]) for match in matches if match]

    return found


def test_three_ranks_save_and_two_load(results: Callable[[str], list[Any]]) -> None:
    assert results("done") == [True] * 3
    for step in range(3):  # by dcp.save, by async_save in a thread and in a process
        assert results(f"step {step}") == [[[], [], {"epoch": 3, "of": [1, 2]}]] * 2


@pytest.mark.filterwarnings("ignore:torch.distributed is (disabled, )?unavailable or uninitialized:UserWarning")
def test_stock_dcp_reads_it(results: Callable[[str], list[Any]], directory: Path) -> None:
    assert results("done") == [True] * 3
    expected = torch.load(directory / "save_and_load/expected.pt")
    found = {name: torch.zeros_like(expected[name]) for name in ("rows", "columns", "same", "few_rows", "plain")}
    stock = HuggingFaceStorageReader(str(directory / "save_and_load/step-00000002"))
    dcp.load(found, storage_reader=stock, no_dist=True)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_damage_makes_all_ranks_fall_back_unless_the_step_was_named(results: Callable[[str], list[Any]]) -> None:
    for text in results("named"):
        assert re.search(r"step-00000002/rank-00002.safetensors: checksum mismatch in bytes .* which hold w", text)
    assert results("fell back") == [[[1.0], 1]] * 3


def test_failure_of_one_rank_publishes_nothing(results: Callable[[str], list[Any]]) -> None:
    for text in results("failed"):
        assert re.search(r"ranks:dict_keys\(\[2\]\)", text)
        assert re.search(r"CheckpointError: .*Input/output error", text)
    assert results("left") == [[f"step-{step:08d}" for step in range(4)]] * 3


def test_part_of_a_tensor_is_refused(results: Callable[[str], list[Any]]) -> None:
    (refused,) = filter(None, results("torn"))
    assert "w: the stored boxes hold 12 of 32 elements" in refused
