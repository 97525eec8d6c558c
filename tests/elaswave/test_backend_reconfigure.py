"""torch's published fault tolerance contract: handles, reconfigure, abort."""

import json
import re
from pathlib import Path

import torch
from launching import Launcher

import _elastates

JOB = Path(__file__).parent / "reconfigure_job.py"

HAS_CONTRACT = hasattr(torch.distributed, "_reconfigure")  # torch 2.15 and later


def test_the_contract_is_offered_where_torch_has_it() -> None:
    assert hasattr(_elastates.ElasticProcessGroup, "await_reconfigure") == HAS_CONTRACT
    assert hasattr(_elastates.ElasticProcessGroup, "reconfigure") == HAS_CONTRACT


def test_groups_are_reconfigured_by_handles(launch: Launcher, free_port: int) -> None:
    if not HAS_CONTRACT:  # nothing to be run: the test above says that nothing is offered
        return
    ranks = launch.ranks(JOB, num_ranks=3, port=free_port)
    ranks[2].wait(expect=-9)
    results = []
    for number, rank in enumerate(ranks[:2]):
        rank.wait()
        (line,) = re.findall(rf"^RESULT {number} (.*)$", rank.output, re.MULTILINE)
        results.append(json.loads(line))
    for number, seen in enumerate(results):
        assert seen["supported"]
        assert seen["told"] == [number, 3]
        assert "call reconfigure()" in seen["too early"]
        assert seen["listed"] == [2 - number, 3, 0 + 1 + 2]
        assert "uuid 7 has been used before" in seen["reused"]
        assert "not among those of the new members" in seen["stranger"]
        assert seen["lost"]
        assert seen["aborted"]
        assert seen["unordered"] == [2, 0 + 1]
    assert {seen["ranks"] for seen in results} == {0, 1}
