"""Tiers under several ranks: rank 0 copies and fetches, everybody knows."""

import json
from pathlib import Path
from typing import Any

import pytest
from launching import Launcher

from datastates.tiers.stores.base import complete_steps
from datastates.tiers.stores.directory import DirectoryStore

JOB = Path(__file__).with_name("ranks_job.py")


@pytest.fixture
def results(launch: Launcher, tmp_path: Path, free_port: int) -> list[dict[str, Any]]:
    """What each of two ranks printed."""
    env = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    ranks = launch.ranks(JOB, tmp_path / "store", tmp_path, num_ranks=2, port=free_port, env=env)
    for rank in ranks:
        rank.wait(timeout_s=100)
    lines = [[line.split(" ", 2) for line in rank.output.splitlines() if line.startswith("RESULT ")] for rank in ranks]
    return [{name: json.loads(value) for _, name, value in mine} for mine in lines]


def test_every_rank_knows(results: list[dict[str, Any]], tmp_path: Path) -> None:
    for rank, mine in enumerate(results):
        assert mine["urls"] == ["step-00000001", None, "step-00000003"]
        assert "ReplicationError: checkpoint of step 5 was not copied to" in mine["refused"]
        assert "PermissionError: no entry" in mine["refused"]
        assert mine["stats"] == [3, 1, 1]
        assert mine["next"] == 9
        assert mine["values"] == [8, 8, *[8 + rank] * 3]
        assert "RestoreError" in mine["silent"]
        assert "s3://bucket/run does not say what it has" in mine["silent"]
        assert "unusable since a failed restore" in mine["unusable"]
    assert complete_steps(DirectoryStore(tmp_path / "second").listing()) == [1, 3, 8]
    assert (tmp_path / "new" / "step-00000008" / "manifest.json").exists()
