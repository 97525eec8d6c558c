"""The recovery benchmark: what it measures of ours, what it says of peers that are not there, and its arithmetic."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import recovery, recovery_group, recovery_hang, recovery_torchft
from benchmarks.jobs import launch, wait_for_ranks
from benchmarks.peers import Peer
from benchmarks.quota import Quotas, used_cpu_s
from benchmarks.recovery_torchft import Step
from benchmarks.spread import interleave, spread

HAS_RECONFIGURE = hasattr(torch.distributed, "_reconfigure")


def test_spread_and_interleave() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "p95": 3.0, "count": 3}
    order = interleave({"ours": 8, "gloo": 2, "absent": 0})
    assert order.count("ours") == 8
    assert [number for number, who in enumerate(order) if who == "gloo"] == [2, 7]
    assert "absent" not in order


def test_the_worst_size_stands_for_the_group() -> None:
    row = dict.fromkeys(recovery_group.FIGURES, 1.0)
    found = recovery.summarize_group({4: [{**row, "is_right": True}], 8: [{**row, "edit_ms": 9.0, "is_right": False}]})
    assert (found["unblocked_ms_median"], found["edit_ms_median"], found["wrong_sums"]) == (1.0, 9.0, 1)
    assert found["is_within"] == {"unblocked_ms_median": True, "agreed_ms_median": True, "edit_ms_median": False}
    assert found["n4"]["edit_ms_p95"] == 1.0


def test_a_hang_counts_by_the_slowest_who_heard() -> None:
    found = recovery_hang.summarize([{"told_s": 10.1, "detected_s": 10.5}, {"told_s": 10.2, "detected_s": 11.1}], 10.0)
    assert (found["detected_s"]["max"], found["limit_s"], found["is_within"]) == (11.1, pytest.approx(11.0), False)


def test_only_a_committed_step_without_the_dead_replica_ends_torchfts_recovery() -> None:
    before, with_dead, thrown_away = Step(1.0, 4, True), Step(2.1, 4, True), Step(2.2, 3, False)
    steps = [before, with_dead, thrown_away, Step(2.3, 3, True), Step(2.4, 3, True)]
    assert recovery_torchft.since(steps, 2.0, 4) == steps[1:4]
    assert recovery_torchft.since(steps[:3], 2.0, 4) is None
    assert recovery_torchft.is_warm([before] * recovery_torchft.WARM_STEPS, 4)
    assert not recovery_torchft.is_warm([before] * recovery_torchft.WARM_STEPS, 5)


def test_a_peer_that_is_not_there_has_a_reason_and_no_figure() -> None:
    absent = Peer("/no/such/python", "recovery_gloo.py").report(["edit_ms"])
    assert list(absent) == ["not_measured"]
    assert "/no/such/python" in absent["not_measured"]
    peer = Peer(sys.executable, "recovery_gloo.py", "--size", 2)
    assert bool(peer.why_not) != HAS_RECONFIGURE
    if HAS_RECONFIGURE:
        peer.trial()
        assert peer.report(["edit_ms"])["edit_ms_median"] > 0


def test_survivors_of_a_group_measure_their_recovery() -> None:
    rows = recovery_group.kill_one(3, random.Random(1))
    assert [row["is_right"] for row in rows] == [True, True]
    assert all(0 < row["unblocked_ms"] <= row["agreed_ms"] <= row["first_sum_ms"] for row in rows)


def test_a_job_is_launched_limited_and_ended(tmp_path: Path) -> None:
    script = Path(recovery.HERE) / "recovery_steps.py"
    quotas = Quotas(0.5)
    with launch([script], ["--nproc-per-node", 2], timeline=tmp_path, is_quiet=True) as agent:
        ranks = wait_for_ranks(agent, tmp_path, 2)
        quotas.limit(ranks)
        assert used_cpu_s([rank.pid for rank in ranks]) > 0
        assert quotas.how in ("cgroup", "duty cycle")
    quotas.close()
    assert [rank.is_alive for rank in ranks] == [False, False]


def test_the_script_writes_what_it_was_asked_to_measure(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    few = ["--kills", "1", "--sizes", "2", "--gloo-trials", "1", "--hangs", "0", "--training-kills", "0"]
    absent = ["--gloo-python", "/no/such/python", "--torchft-python", "/no/such/python"]
    command = [sys.executable, recovery.__file__, "--json", str(report), *few, *absent]
    subprocess.run(command, check=True, capture_output=True, timeout=110)
    found = json.loads(report.read_text())
    assert found["group"]["n2"]["survivors"] == 1
    assert found["group"]["wrong_sums"] == 0
    assert set(found["torchft"]["defaults"]) == {"lighthouse", "not_measured"}
    assert "hang_detected_s" not in found
