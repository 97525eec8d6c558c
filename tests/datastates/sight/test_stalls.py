"""The stall report: every cause made to happen, and named."""

import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from held_storage import SMALL_ARENA, HeldStorage, train, wide_model
from hypothesis import given
from hypothesis import strategies as st
from launching import Launcher
from polling import until

from datastates import Checkpointer, sight
from datastates.sight import stalls
from datastates.sight.stalls import ChainReading, Waited, explain, summed
from datastates.sight.timeline import Activity, Timeline

Open = Callable[..., Checkpointer]
JOB = Path(__file__).with_name("late_rank_job.py")


# ---- causes, for real


def test_slow_storage_is_named(open_checkpoints: Open, storage: HeldStorage, events: list[sight.Event]) -> None:
    """Writes stand still while training is at the gate, with an arena that is smaller than the state."""
    model = wide_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpoints = open_checkpoints(**SMALL_ARENA)
    checkpoints.checkpoint(0, {"tiny": torch.ones(1)}).durable.result(60)  # allocates the arena
    storage.hold(opens_at_gate=False)
    checkpoints.checkpoint(1, {"model": model, "optimizer": optimizer})
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train, model, optimizer)
        until(lambda: bool(storage.gates))
        starved_s = checkpoints._pipeline.chain().starved_s  # type: ignore[union-attr]
        until(lambda: checkpoints._pipeline.chain().starved_s > starved_s + 0.2)  # type: ignore[union-attr]
        storage.release()
        training.result(60)

    report = checkpoints.stall_report()
    assert report.shares[0].cause is sight.Cause.STORAGE
    assert report.shares[0].seconds >= 0.2
    assert report.shares[0].mb_s < 10  # 0.2 MB at most, in 0.2 s
    assert "arena full: waiting for write (storage" in str(report)
    assert list(report.by_step()) == [1]
    assert report.waited_s == pytest.approx(sum(share.seconds for share in report.shares), abs=0.05)
    assert sight.flush()
    waits = [event for event in events if isinstance(event, sight.GateWaited)]
    assert [wait.step for wait in waits] == [1]
    assert waits[0].causes[0]["cause"] == "storage"
    assert "waiting for write" in waits[0].summary


def test_copying_and_allocating_are_named(open_checkpoints: Open) -> None:
    """A gate right behind the call: the first time it waits for the arena's memory, later for the copy alone."""
    tensor = torch.nn.Parameter(torch.ones(48 << 18))  # 50 MB
    optimizer = torch.optim.SGD([tensor], lr=0.1)
    checkpoints = open_checkpoints(copy_threads=1)
    tensor.grad = torch.ones_like(tensor)
    reports = []
    for step in range(6):
        checkpoints.checkpoint(step, {"tensor": tensor, "optimizer": optimizer})
        optimizer.step()
        checkpoints.wait()
        reports.append(checkpoints.stall_report())

    first, *later = (reports[-1].by_step().get(step, []) for step in range(6))
    assert {share.cause for share in first} >= {sight.Cause.ARENA, sight.Cause.COPYING}
    assert sum(share.seconds for share in first if share.cause is sight.Cause.ARENA) > 0
    assert not any(share.cause is sight.Cause.ARENA for shares in later for share in shares)
    copying = [share for shares in later for share in shares if share.cause is sight.Cause.COPYING]
    longest = max(copying, key=lambda share: share.left_bytes)  # a busy machine may be slow elsewhere in some steps
    assert longest.left_bytes > 10 * 10**6
    assert longest.mb_s > 0
    assert "arena being allocated" in str(reports[0])
    assert "MB left" in str(reports[-1])


def test_a_late_rank_is_named(launch: Launcher, tmp_path: Path, free_port: int) -> None:
    """Rank 0 is at the gate while rank 1 has not begun the checkpoint."""
    env = {"GLOO_SOCKET_IFNAME": "lo", "RES_OPTIONS": "timeout:1 attempts:1"}
    ranks = launch.ranks(JOB, str(tmp_path / "run"), num_ranks=2, port=free_port, env=env)
    found = ranks[0].wait_for(r"^RESULT (\S+) (\S+) (.*)$", timeout_s=100)
    for rank in ranks:
        rank.wait(timeout_s=60)
    assert found[1] == "agreement:1"
    assert float(found[2]) >= 0.25
    assert "waiting for agreement with rank 1" in found[3]

    sight.merge_traces([tmp_path / f"run-rank-{rank:05d}.json" for rank in range(2)], tmp_path / "both.json")
    events = json.loads((tmp_path / "both.json").read_text())["traceEvents"]
    late = [event for event in events if event["name"] == "wait for rank 1" and event["dur"] > 0.25e6]
    assert [event["pid"] for event in late] == [0]
    assert {event["pid"] for event in events if event["name"] == "checkpoint()"} == {0, 1}


def test_python_state_of_an_earlier_checkpoint_is_named(open_checkpoints: Open, monkeypatch: Any) -> None:
    """Its file is synced on the planning lane, where the next checkpoint waits behind it."""
    tensor = torch.nn.Parameter(torch.ones(1000))
    optimizer = torch.optim.SGD([tensor], lr=0.1)
    state = {"tensor": tensor, "optimizer": optimizer}
    checkpoints = open_checkpoints()
    checkpoints.checkpoint(0, state).durable.result(60)
    write = checkpoints._pipeline._write_objects

    def slowly(*args: Any) -> Any:
        time.sleep(0.1)  # as a slow disk does
        return write(*args)

    monkeypatch.setattr(checkpoints._pipeline, "_write_objects", slowly)
    checkpoints.checkpoint(1, state)
    checkpoints.checkpoint(2, state)
    checkpoints.gate()
    steps = checkpoints.stall_report().by_step()
    assert sum(s.seconds for s in steps[2] if s.cause is sight.Cause.PYTHON_STATE) > 0.05
    assert sum(s.seconds for s in steps.get(1, ())) < 0.05  # its own is not waited for


def test_a_gate_that_does_not_wait_has_no_cause(open_checkpoints: Open) -> None:
    tensor = torch.nn.Parameter(torch.ones(8))
    optimizer = torch.optim.SGD([tensor], lr=0.1)
    checkpoints = open_checkpoints()
    checkpoints.checkpoint(0, {"tensor": tensor, "optimizer": optimizer}).durable.result(60)
    tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    report = checkpoints.stall_report()
    assert (report.waits, report.shares, report.num_checkpoints) == ((), (), 1)
    assert str(report).startswith("1 checkpoints in ")
    assert report.call_s > 0


def test_much_waiting_is_warned_of_in_one_line(
    open_checkpoints: Open, storage: HeldStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stalls, "WARNING_WINDOW_S", 0.0)
    model = wide_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpoints = open_checkpoints(**SMALL_ARENA, stall_warning_share=0.0)
    storage.hold()
    with caplog.at_level(logging.WARNING, "datastates"):
        checkpoints.checkpoint(0, {"model": model, "optimizer": optimizer})
        checkpoints.gate()
    warnings = [r.getMessage() for r in caplog.records if "training waited" in r.getMessage()]
    assert len(warnings) == 1
    assert "for checkpoints: " in warnings[0]
    assert "\n" not in warnings[0]


def test_the_warning_can_be_turned_off_and_is_not_given_for_little(
    open_checkpoints: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stalls, "WARNING_WINDOW_S", 0.0)
    tensor = torch.nn.Parameter(torch.ones(1 << 20))
    state = {"tensor": tensor, "optimizer": torch.optim.SGD([tensor], lr=0.1)}
    for step, share in enumerate((None, 1.0)):
        checkpoints = open_checkpoints(stall_warning_share=share)
        checkpoints.checkpoint(step, state)
        checkpoints.gate()
        checkpoints.close()
    assert not [r for r in caplog.records if "training waited" in r.getMessage()]


# ---- the division


@st.composite
def waits(draw: st.DrawFn) -> tuple[Waited, list[Activity]]:
    """A wait, and what the planning lane did before the engine had the checkpoint."""
    moments = sorted(draw(st.lists(st.floats(0, 100), min_size=2, max_size=8)))
    begin_s, end_s = moments[0], moments[-1]
    submitted_s = draw(st.none() | st.floats(-1, 101))
    handed_s = end_s if submitted_s is None else min(max(submitted_s, begin_s), end_s)
    timeline = Timeline()
    edges = zip(moments[::2], moments[1::2], strict=False)
    timeline.add(Activity(draw(st.sampled_from(sight.Cause)), begin, end) for begin, end in edges)
    starved_s = draw(st.floats(0, 200))
    waited = Waited(
        begin_s=begin_s,
        end_s=end_s,
        submitted_s=submitted_s,
        chain_before=ChainReading(),
        chain_after=ChainReading(starved_s=starved_s, bytes_copied=10, bytes_stored=10),
        left_bytes=5,
    )
    return waited, timeline.within(begin_s, handed_s)


@given(waits())
def test_shares_add_up_to_the_wait(case: tuple[Waited, list[Activity]]) -> None:
    waited, activities = case
    shares = explain(waited, activities)
    assert sum(share.seconds for share in shares) == pytest.approx(waited.end_s - waited.begin_s, abs=1e-5)
    assert all(share.seconds > 0 for share in shares)
    assert len({(share.cause, share.rank) for share in shares}) == len(shares)
    assert [share.seconds for share in shares] == sorted((s.seconds for s in shares), reverse=True)


def test_a_wait_is_divided_as_drawn() -> None:
    """1 s of agreement with rank 3, 1 s of nothing known, then 4 s of the engine, 3 of them starved."""
    waited = Waited(
        begin_s=10,
        end_s=16,
        submitted_s=12,
        chain_before=ChainReading(starved_s=5, bytes_copied=100, bytes_stored=50),
        chain_after=ChainReading(starved_s=8, bytes_copied=100 + 3 * 10**6, bytes_stored=50 + 8 * 10**6),
        left_bytes=7 * 10**6,
    )
    shares = explain(waited, [Activity(sight.Cause.AGREEMENT, 10, 11, rank=3)])
    assert [(share.cause.value, share.seconds, str(share)) for share in shares] == [
        ("storage", 3, "arena full: waiting for write (storage 2 MB/s)"),
        ("agreement", 1, "waiting for agreement with rank 3"),
        ("planning", 1, "planning"),
        ("copying", 1, "copying was behind (7.0 MB left, 3 MB/s)"),
    ]


def test_sums_keep_ranks_apart_and_bytes_together() -> None:
    cause = sight.Cause.AGREEMENT
    shares = [sight.Share(cause=cause, seconds=1, rank=rank, size_bytes=1) for rank in (1, 2, 1)]
    assert [(share.rank, share.seconds, share.size_bytes) for share in summed(shares)] == [(1, 2, 2), (2, 1, 1)]
