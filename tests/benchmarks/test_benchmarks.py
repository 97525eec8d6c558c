"""The benchmarks run, report what they promise, divide the right way round, and see a torn checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import against, ceilings, checkpoint, group, memory, protocol, ratios, reading, tiny_tensors
from benchmarks.contenders.base import Contender, Pending
from benchmarks.contenders.peer import SyncedAfterwards
from benchmarks.contenders.torch_save import TorchSave
from benchmarks.every_step import Block, overhead
from benchmarks.workload import TinyTensors, Workload

REPOSITORY = Path(__file__).parents[2]
CONTENDER_KEYS = {
    "call_ms",
    "stall_ms",
    "safe_ms",
    "durable_ms",
    "durable_mb_s",
    "restore_mb_s",
    "peak_extra_mb",
    "correct",
}


class Torn(TorchSave):
    """A library that keeps references where it should keep copies: says safe and durable at once, reads much later."""

    name = "torn"

    def save(self, step: int) -> Pending:
        self.path_of(step).mkdir(parents=True)
        return SyncedAfterwards(self.path_of(step))

    def restore(self, step: int) -> dict[str, Any]:
        self.path_of(step).rmdir()
        super().save(step)
        return super().restore(step)


def small_workload() -> Workload:
    return Workload(size_bytes=10**6, num_tiny=5, seed=0)


def sample(**figures: Any) -> protocol.Sample:
    seconds = dict.fromkeys(
        (
            "call_s",
            "overlapped_step_s",
            "plain_step_s",
            "stall_until_durable_s",
            "safe_s",
            "durable_s",
            "safe_overlapped_s",
            "durable_overlapped_s",
            "restore_s",
        ),
        1.0,
    )
    rest = {"gate_s": 0.0, "peak_extra_mb": 1.0, "stored_bytes": 10**6, "num_bytes": 10**6, "differences": ()}
    return protocol.Sample(**{**seconds, **rest, **figures})


def ceiling(write_mb_s: float, read_mb_s: float) -> ceilings.Ceiling:
    return ceilings.Ceiling(write_mb_s=write_mb_s, read_mb_s=read_mb_s, read_threads=1, memcpy_gb_s=10.0, direct=True)


def test_stall_adds_call_gate_and_slowdown() -> None:
    assert sample(call_s=0.5, gate_s=0.25, overlapped_step_s=2.0, plain_step_s=1.5).stall_s == pytest.approx(1.25)


def test_ratios_divide_ours_by_the_best_correct_peer_of_the_same_repeat() -> None:
    ours = [sample(call_s=0.1, durable_s=0.5, restore_s=0.25), sample(call_s=0.3, durable_s=0.25, restore_s=0.5)]
    slow = [sample(call_s=4.0, durable_s=0.8)] * 2
    fast = [sample(call_s=1.0, durable_s=1.0), sample(call_s=1.0, durable_s=2.0)]
    wrong = [sample(call_s=0.01, durable_s=0.01, differences=("model.weight",))] * 2
    found = ratios.compute(
        ours=ours,
        peers={"slow": slow, "fast": fast, "wrong": wrong},
        dcp={"slow": slow, "fast": fast},
        ceilings=[ceiling(4.0, 8.0), ceiling(8.0, 4.0)],
        tiny={},
    )
    assert found["stall_vs_best_peer"] == pytest.approx(0.2)  # 0.1/1.0 and 0.3/1.0; "wrong" does not count
    assert found["durable_vs_best_peer"] == pytest.approx((1.6 + 3.2) / 2)  # "slow" is durable sooner: 1.25 MB/s
    assert found["durable_vs_ceiling"] == pytest.approx(0.5)  # 2/4 and 4/8
    assert found["restore_vs_ceiling"] == pytest.approx(0.5)  # 4/8 and 2/4
    assert found["restore_vs_dcp"] == pytest.approx(3.0)  # 4/1 and 2/1
    assert found["tiny_tensors_vs_dcp"] is None


def test_ratios_without_peers_are_none() -> None:
    found = ratios.compute(ours=[sample()], peers={}, dcp={}, ceilings=[], tiny={})
    assert set(found) == set(ratios.DEFINITIONS)
    assert set(found.values()) == {None}


def test_tiny_ratio_is_the_worse_of_save_and_load() -> None:
    ours = [tiny_tensors.TinySample(first_save_s=1.0, save_s=0.5, load_s=0.1, correct=True)]
    dcp = [tiny_tensors.TinySample(first_save_s=1.0, save_s=10.0, load_s=4.0, correct=True)]
    assert ratios.tiny_ratio(ours, dcp) == pytest.approx(20.0)


def test_reading_ratios_divide_pairwise_and_the_right_way_round() -> None:
    def samples(*pairs: tuple[float, float]) -> list[reading.ReadingSample]:
        return [reading.ReadingSample(ours_s=ours, dcp_s=dcp, correct=True) for ours, dcp in pairs]

    read = reading.Reading(
        reshard=samples((1.0, 2.0), (0.5, 3.0), (2.0, 8.0)),
        reshard_columns=samples((2.0, 2.0)),
        reshard_bytes=10**9,
        one_of_many=samples((0.01, 0.1), (0.02, 0.1), (0.03, 0.1)),
        many_count=7,
    )
    found = ratios.compute(ours=[], peers={}, dcp={}, ceilings=[], tiny={}, reading=read)
    assert (found["reshard_vs_dcp"], found["one_tensor_vs_dcp"]) == (pytest.approx(4.0), pytest.approx(0.2))
    assert found["reshard_columns_vs_dcp"] == pytest.approx(1.0)
    summary = ratios.reading_summary(read)
    assert summary["reshard_4_to_2_mb_s"] == {"ours": pytest.approx(1000), "dcp": pytest.approx(1000 / 3)}
    assert summary["one_tensor_of_many_ms"] == {"ours": pytest.approx(20), "dcp": pytest.approx(100)}


def test_overhead_counts_the_drain() -> None:
    blocks = [
        Block(with_checkpoints=True, steps_s=[1.0, 1.0], drain_s=0.5),
        Block(with_checkpoints=False, steps_s=[1.0, 1.0], drain_s=0.0),
    ]
    assert overhead(blocks) == pytest.approx(0.25)


def test_truthful_contender_is_correct(tmp_path: Path) -> None:
    workload = small_workload()
    found = protocol.measure(TorchSave(workload, tmp_path / "a"), workload)
    assert found.correct
    assert found.stored_bytes >= found.num_bytes > 0
    assert not (tmp_path / "a").exists()


def test_torn_contender_is_not_correct(tmp_path: Path) -> None:
    workload = small_workload()
    found = protocol.measure(Torn(workload, tmp_path / "a"), workload)
    assert not found.correct
    assert {"model.embedding.weight", "progress"} <= set(found.differences)
    assert not ratios.is_correct([sample(), found])


def test_one_flipped_bit_is_a_difference() -> None:
    state = TinyTensors(count=3, elements=8, seed=0)
    state.remember()
    assert state.differences(state.progress) == []
    state.tensors["model.tensor.1"].view(torch.int32)[5] ^= 1
    assert state.differences(state.progress) == ["model.tensor.1"]


def test_a_wrong_checkpoint_of_ours_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create_torn(name: str, state: Any, root: Path, arena_mb: int | None = None) -> Contender:
        return Torn(state, root)

    monkeypatch.setattr(checkpoint, "create", create_torn)
    arguments = ["--contenders", "ours", "--size-mb", "1", "--num-tiny", "5", "--step-s", "0", "--tiny-repeats", "0"]
    arguments += ["--reading-repeats", "0"]
    report = tmp_path / "report.json"
    monkeypatch.setattr(
        sys, "argv", ["checkpoint.py", *arguments, "--repeats", "1", "--json", str(report), "--dir", str(tmp_path)]
    )
    assert checkpoint.main() == 1
    assert json.loads(report.read_text())["contenders"]["ours"]["correct"] is False


def test_a_peer_that_is_missing_or_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing(TorchSave):
        def open(self) -> None:
            raise ImportError("no such library")

    class Failing(TorchSave):
        def restore(self, step: int) -> dict[str, Any]:
            raise OSError("lost")

    classes = {"torchsnapshot": Missing, "safetensors": Failing}
    monkeypatch.setattr(checkpoint, "create", lambda name, state, root, arena_mb: classes[name](state, root))
    options = checkpoint.parse_options(
        ["--json", "unused", "--contenders", "torchsnapshot,safetensors", "--repeats", "2", "--tiny-repeats", "0"]
    )
    run = checkpoint.Run(options, tmp_path)
    run.measure_all(small_workload())
    report = run.contenders_report()
    assert report["torchsnapshot"] == {"skipped": "no such library"}
    assert report["safetensors"] == {"failed": "OSError('lost')", "correct": False}


def test_ceilings_are_measured_and_cleaned_up(tmp_path: Path) -> None:
    found = ceilings.measure(tmp_path, size_bytes=5_000_001, copy_threads=2)
    assert min(found.write_mb_s, found.read_mb_s, found.memcpy_gb_s) > 0
    assert list(tmp_path.iterdir()) == []


def test_peak_memory_sees_what_was_freed_again() -> None:
    with memory.PeakMemory() as peak:
        held = bytearray(64 * 10**6)
        before = peak.samples
        while peak.samples < before + 2:
            held[0] += 1 if held[0] < 255 else -255
        del held
    assert 60 < peak.peak_extra_mb < 80


def run_script(name: str, *arguments: str, directory: Path) -> dict[str, Any]:
    report = directory / "report.json"
    command = [sys.executable, str(REPOSITORY / "benchmarks" / name), "--json", str(report), *arguments]
    # One thread: on a busy machine two that spin for each other take ten times as long.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False, env=environment)
    assert finished.returncode == 0, finished.stderr
    return json.loads(report.read_text())


def group_case(num_ranks: int, size_bytes: int, gloo: list[float], ours: list[float], hosts: int = 1) -> group.Case:
    """The CPU seconds are the milliseconds."""
    figures = {"gloo": gloo, "elastic": ours}
    return group.Case(hosts=hosts, num_ranks=num_ranks, size_bytes=size_bytes, times_ms=figures, cpu_s=figures)


def test_group_ratios_divide_within_a_repeat_and_the_right_way_round() -> None:
    cases = [
        group_case(4, 64 << 20, [10.0, 40.0, 30.0], [5.0, 10.0, 10.0]),
        group_case(8, 4 << 10, [8.0], [2.0]),
        group_case(4, 64 << 20, [10.0], [10.0], hosts=2),
    ]
    figures = group.compute_ratios(cases)
    assert figures == {
        "allreduce_64mb_n4": 3.0,
        "allreduce_16mb_n4": None,
        "allreduce_1mb_n4": None,
        "latency_4kb_n8": 4.0,
        "cpu_per_gb": pytest.approx(1 / 3),
        "tcp_64mb_n4": 1.0,
    }
    assert [group.meets(name, ratio) for name, ratio in figures.items()] == [True, None, None, True, True, True]
    assert group.meets("cpu_per_gb", 1.1) is False


def test_group_script(tmp_path: Path) -> None:
    report = run_script("group.py", "--ranks", "2", "--largest-mb", "1", "--no-hosts", directory=tmp_path)
    assert [case["size_bytes"] for case in report["cases"]] == [4 << 10, 1 << 20]
    for case in report["cases"]:
        assert len(case["times_ms"]["elastic"]) == len(case["times_ms"]["gloo"]) == len(case["cpu_s"]["gloo"])
    assert set(report["ratios"]) == set(report["floors"]) == set(report["definitions"])
    assert report["two_hosts_left_out"] == "--no-hosts"


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_checkpoint_script(tmp_path: Path) -> None:
    report = run_script(
        "checkpoint.py",
        *("--contenders", "torch_save,dcp_sync,ours", "--size-mb", "16", "--repeats", "2", "--num-tiny", "20"),
        *("--step-s", "0.02", "--tiny-count", "100", "--tiny-repeats", "1", "--dir", str(tmp_path)),
        *("--reshard-mb", "40", "--many-count", "20", "--reading-repeats", "1"),
        directory=tmp_path,
    )
    for name in ("torch_save", "dcp_sync", "ours"):
        assert set(report["contenders"][name]) >= CONTENDER_KEYS
        assert report["contenders"][name]["correct"] is True
        assert len(report["contenders"][name]["samples"]) == 2
    assert set(report["ceiling"]) >= {"write_mb_s", "read_mb_s", "memcpy_gb_s"}
    assert set(report["ratios"]) == set(ratios.DEFINITIONS)
    assert all(value is not None for value in report["ratios"].values())
    for figure in ("reshard_4_to_2_mb_s", "one_tensor_of_many_ms"):
        assert min(report[figure][library] for library in ("ours", "dcp")) > 0
    assert report["arena_mb"] > 0
    assert report["size_mb"] == pytest.approx(16, rel=0.05)


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_every_step_script(tmp_path: Path) -> None:
    report = run_script(
        "every_step.py",
        *("--size-mb", "8", "--steps", "4", "--num-tiny", "5", "--write-fraction", "1", "--dir", str(tmp_path)),
        directory=tmp_path,
    )
    assert set(report) >= {"overhead", "overhead_small_arena", "step_ms", "state_mb", "write_fraction"}
    for arena in report["arenas"].values():
        assert [block["with_checkpoints"] for block in arena["blocks"]] == [False, True, False]
        assert [len(block["steps_s"]) for block in arena["blocks"]] == [2, 4, 2]
        assert arena["stats"]["num_durable"] == 7


def test_actors_script(tmp_path: Path) -> None:
    report = run_script("actors.py", "--messages", "100000", directory=tmp_path)
    assert report["same_thread_hop_ns"] > 0
    assert report["cross_thread_messages_per_s"] > 0
    assert report["rss_after_mb"] - report["rss_before_mb"] < 16


def test_two_commits_are_compared_second_over_first() -> None:
    first = dict.fromkeys(against.FIGURES, 2.0)
    rounds = [(first, dict.fromkeys(against.FIGURES, second)) for second in (1.0, 3.0, 1.5)]
    assert against.summary(rounds)["stall_ms"] == {"first": 2.0, "second": 1.5, "ratio": 0.75}
