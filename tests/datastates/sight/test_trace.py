"""The trace: recorded from real checkpoints, parsed as its readers do."""

import itertools
import json
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datastates import Checkpointer, sight
from datastates.sight.chrome_trace import NativeSlice, lay_out

import _elastates

Open = Callable[..., Checkpointer]
Event = dict[str, Any]
CHUNK = 64 << 10


@pytest.fixture
def large_state() -> dict[str, Any]:
    """4 MB that an optimizer writes."""
    tensor = torch.nn.Parameter(torch.ones(1 << 20))
    tensor.grad = torch.ones_like(tensor)
    return {"tensor": tensor, "optimizer": torch.optim.SGD([tensor], lr=0.1)}


@pytest.fixture
def traced(open_checkpoints: Open, large_state: dict[str, Any], tmp_path: Path) -> tuple[list[Event], int]:
    """The events of a trace of three checkpoints through an arena of 16 blocks; the size of a data file."""
    path = tmp_path / "traces" / "trace.json"
    checkpoints = open_checkpoints(arena_mb=1, chunk_bytes=CHUNK, keep_last=1)
    with sight.trace(path):
        for step in range(3):
            checkpoints.checkpoint(step, large_state)
            large_state["optimizer"].step()
        checkpoints.wait()
        checkpoints.restore(large_state)
        checkpoints.close()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    document = json.loads(path.read_text())
    assert document["otherData"]["records_dropped"] == 0
    size_bytes = next((tmp_path / "run").glob("step-*/*.safetensors")).stat().st_size
    return document["traceEvents"], size_bytes


def slices(events: list[Event], name: str) -> list[Event]:
    return [event for event in events if event["ph"] == "X" and event["name"] == name]


def tracks(events: list[Event]) -> dict[int, str]:
    return {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}


def test_it_is_well_formed(traced: tuple[list[Event], int]) -> None:
    """What readers ask for: known phases, one process, named tracks, slices that nest or are disjoint."""
    events, _ = traced
    assert {event["ph"] for event in events} == {"M", "X", "C", "s", "t", "f"}
    assert len({event["pid"] for event in events}) == 1
    by_track: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            by_track[event["tid"]].append(event)
    assert by_track.keys() == tracks(events).keys()
    for found in by_track.values():
        open_ends: list[float] = []
        for event in sorted(found, key=lambda e: (e["ts"], -e["dur"])):
            while open_ends and open_ends[-1] <= event["ts"] + 0.001:  # times are whole ns, written as fractions of us
                open_ends.pop()
            assert not open_ends or event["ts"] + event["dur"] <= open_ends[-1] + 0.001, event
            open_ends.append(event["ts"] + event["dur"])


def test_every_chunk_is_at_every_actor(traced: tuple[list[Event], int]) -> None:
    events, size_bytes = traced
    for actor in ("capture", "copy", "write"):
        found = slices(events, actor)
        for step in range(3):
            of_step = [event["args"] for event in found if event["args"]["step"] == step]
            chunks = sorted(args["chunk"] for args in of_step)
            assert chunks == list(range(-(-size_bytes // CHUNK))), actor
            assert sum(args["bytes"] for args in of_step) == size_bytes
    for file_act in ("open", "sync"):
        assert [event["args"]["bytes"] for event in slices(events, file_act)] == [size_bytes] * 3
    assert len(slices(events, "seal")) == len(slices(events, "write"))


def test_tracks_are_the_actors_and_the_lanes(traced: tuple[list[Event], int]) -> None:
    events, _ = traced
    names = set(tracks(events).values())
    assert names >= {
        f"trainer ({threading.current_thread().name})",
        "plan (ds-plan)",
        "capture (ds-capture)",
        "copy-0",
        "copy-1",
        "write 0",
        "open (ds-write)",
        "sync (ds-commit)",
        "see copied (ds-copied)",
        "see written (ds-written)",
        "publish (ds-commit)",
    }
    assert {event["tid"] for event in slices(events, "checkpoint()")} == {threading.get_native_id()}
    inside = {"gather digests": 3, "manifest and rename": 3, "hear the outcome": 3, "load tensors": 1}
    for name, count in {**inside, "checkpoint()": 3, "plan": 3, "agree": 3, "publish": 3, "restore()": 1}.items():
        assert len(slices(events, name)) == count, name
    assert len(slices(events, "allocate the arena")) == 1
    assert len(slices(events, "prune")) == 3


def test_credits_are_a_counter_that_comes_home(traced: tuple[list[Event], int]) -> None:
    events, _ = traced
    credits = [event for event in events if event["ph"] == "C"]
    assert {event["name"] for event in credits} == {"arena: free blocks"}
    values = [event["args"]["free blocks"] for event in credits]
    assert [event["ts"] for event in credits] == sorted(event["ts"] for event in credits)
    assert min(values) >= 0
    assert max(values) == values[-1] == (1 << 20) // CHUNK


def test_every_checkpoint_flows_from_the_call_to_durable(traced: tuple[list[Event], int]) -> None:
    events, _ = traced
    for step in range(3):
        flow = [event for event in events if event["ph"] in "stf" and event["id"] == step]
        assert [event["ph"] for event in flow] == ["s", *"t" * (len(flow) - 2), "f"]
        assert flow[-1]["bp"] == "e"
        assert [event["ts"] for event in flow] == sorted(event["ts"] for event in flow)
        ends = {"s": "checkpoint()", "f": "publish"}
        for event in (flow[0], flow[-1]):
            around = [s for s in slices(events, ends[event["ph"]]) if s["args"]["step"] == step]
            assert [(s["tid"], s["ts"]) for s in around] == [(event["tid"], event["ts"])]


def test_a_wait_at_a_gate_says_why(
    open_checkpoints: Open, storage: Any, large_state: dict[str, Any], tmp_path: Path
) -> None:
    checkpoints = open_checkpoints(arena_mb=1, chunk_bytes=CHUNK)
    storage.hold()
    with sight.trace(tmp_path / "trace.json"):
        checkpoints.checkpoint(0, large_state)
        large_state["optimizer"].step()
        checkpoints.wait()
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    [gate] = slices(events, "gate")
    assert gate["args"]["step"] == 0
    assert " s " in gate["args"]["why"]
    assert gate["tid"] == threading.get_native_id()
    starved = slices(events, "starved")
    assert starved
    assert {tracks(events)[event["tid"]] for event in starved} == {"capture (ds-capture)"}


def test_a_failure_inside_still_leaves_a_trace(open_checkpoints: Open, state: Any, tmp_path: Path) -> None:
    checkpoints = open_checkpoints()
    with pytest.raises(TypeError, match="mapping"), sight.trace(tmp_path / "trace.json"):
        checkpoints.checkpoint(0, [state])  # type: ignore[arg-type]
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    [call] = slices(events, "checkpoint()")
    assert "TypeError" in call["args"]["error"]


def test_one_trace_at_a_time_and_none_afterwards(open_checkpoints: Open, state: Any, tmp_path: Path) -> None:
    with sight.trace(tmp_path / "one.json"):
        with pytest.raises(RuntimeError, match="already"), sight.trace(tmp_path / "two.json"):
            pass
        assert not (tmp_path / "two.json").exists()
    open_checkpoints().checkpoint(0, state).durable.result(60)
    assert all(not records for _, _, records, _ in _elastates.trace_drain())
    with sight.trace(tmp_path / "empty.json"):
        pass
    document = json.loads((tmp_path / "empty.json").read_text())
    assert [event["ph"] for event in document["traceEvents"]] == ["M"]


def test_traces_of_ranks_are_merged_on_one_clock(tmp_path: Path) -> None:
    def document(begin_unix_s: float, dropped: int) -> dict[str, Any]:
        call = {"ph": "X", "name": "checkpoint()", "pid": 77, "tid": 5, "ts": 10.0, "dur": 1.0}
        flow = {"ph": "s", "name": "step 1", "id": 1, "pid": 77, "tid": 5, "ts": 10.0}
        name = {"ph": "M", "name": "process_name", "pid": 77, "tid": 0, "args": {"name": "rank"}}
        other = {"begin_unix_s": begin_unix_s, "records_dropped": dropped}
        return {"traceEvents": [name, call, flow], "otherData": other}

    paths = [tmp_path / "rank-0.json", tmp_path / "rank-1.json"]
    for path, begun, dropped in zip(paths, (100.0, 100.25), (1, 2), strict=True):
        path.write_text(json.dumps(document(begun, dropped)))
    sight.merge_traces(paths, tmp_path / "all.json")
    both = json.loads((tmp_path / "all.json").read_text())
    found = [(e["pid"], e["ts"]) for e in both["traceEvents"] if e["ph"] == "X"]
    assert found == [(0, 10.0), (1, 250_010.0)]
    assert [e["id"] for e in both["traceEvents"] if e["ph"] == "s"] == ["0/1", "1/1"]
    assert {e["pid"] for e in both["traceEvents"] if e["ph"] == "M"} == {0, 1}
    assert both["otherData"] == {"begin_unix_s": 100.0, "records_dropped": 3}


pieces = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=30)


@given(pieces)
def test_writes_that_overlap_lie_on_different_lanes(times: list[tuple[int, int]]) -> None:
    writes = [
        NativeSlice(
            tid=1,
            thread_name="ds-uring",
            what="write",
            begin_ns=begin,
            end_ns=begin + length,
            step=0,
            snapshot=1,
            chunk=number,
            size_bytes=1,
        )
        for number, (begin, length) in enumerate(times)
    ]
    laid = lay_out(writes)
    assert sorted(piece.chunk for _, piece in laid) == list(range(len(writes)))
    lanes: dict[int, list[NativeSlice]] = defaultdict(list)
    for lane, piece in laid:
        lanes[lane].append(piece)
    for found in lanes.values():
        assert all(one.end_ns <= other.begin_ns for one, other in itertools.pairwise(found))
    most = max((sum(w.begin_ns <= at < w.end_ns for w in writes) for at in range(71)), default=0)
    assert len(lanes) <= most + sum(w.begin_ns == w.end_ns for w in writes)
    assert set(lanes) == set(range(len(lanes)))
