"""FSDP2 on 4 ranks saves; 2 and 3 ranks restore; stock DCP and our reader agree with it bit for bit.

``fsdp2_job.py`` is what the ranks run; every number of ranks is a job of its own, of real processes.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from launching import Launched, Launcher

from datastates.directory import read_manifest

JOB = Path(__file__).with_name("fsdp2_job.py")


def start(launch: Launcher, tmp_path: Path, scenario: str, num_ranks: int) -> list[Launched]:
    store, run, expected = (str(tmp_path / name) for name in (f"store-{num_ranks}", "run", "expected.pt"))
    # torch looks up the names of peers' addresses, which takes 5 s where nobody answers.
    env = {"GLOO_SOCKET_IFNAME": "lo", "RES_OPTIONS": "timeout:1 attempts:1"}
    return launch.ranks(JOB, scenario, store, run, expected, num_ranks=num_ranks, port=0, env=env)


def results(ranks: list[Launched], name: str) -> list[Any]:
    return [json.loads(rank.wait_for(rf"^RESULT {re.escape(name)} (.*)$", timeout_s=100)[1]) for rank in ranks]


@pytest.mark.slow
def test_saved_on_four_ranks_and_loaded_on_two_and_three(launch: Launcher, tmp_path: Path) -> None:
    saving = start(launch, tmp_path, "save", 4)
    assert results(saving, "published") == ["step-00000002"] * 4
    rows = results(saving, "rows")
    for rank in saving:
        rank.wait()
    assert len(set(map(tuple, rows))) > 1, "the shards are uneven"
    assert any(0 in sizes for sizes in rows), "some rank holds nothing of some parameter"
    tensors = read_manifest(tmp_path / "run" / "step-00000002").tensors
    assert max(len(info.shards) for info in tensors.values()) == 4

    for num_ranks in (2, 3):
        loading = start(launch, tmp_path, "load", num_ranks)
        assert results(loading, "start") == [3] * num_ranks
        assert results(loading, "different") == [[]] * num_ranks
        assert results(loading, "number") == [len(tensors)] * num_ranks
        assert results(loading, "goes on differently") == [[]] * num_ranks
        for rank in loading:
            rank.wait()
