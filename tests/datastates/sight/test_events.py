"""Events: what a checkpoint's life looks like to a sink, and that a sink cannot hurt it."""

import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import Launcher

from datastates import Checkpointer, CheckpointError, RestoreError, open_checkpoint, saving, sight
from datastates.sight import bus
from datastates.sight import events as events_module
from datastates.sight.sinks import EVENTS_VARIABLE, file_of_rank, one_line

import _elastates

Open = Callable[..., Checkpointer]
State = dict[str, Any]


def seen(events: list[sight.Event]) -> list[str]:
    assert sight.flush()
    return [event.name() for event in events]


def only(events: list[sight.Event], kind: type[sight.Event]) -> Any:
    found = [event for event in events if isinstance(event, kind)]
    assert len(found) == 1, (kind, found)
    return found[0]


def test_the_life_of_a_checkpoint(open_checkpoints: Open, events: list[sight.Event], state: State) -> None:
    checkpoints = open_checkpoints()
    path = checkpoints.checkpoint(7, state).durable.result(60)

    milestones = ["begun", "captured", "agreed", "submitted", "copied", "written", "published"]
    assert [name for name in seen(events) if name != "arena_allocated"] == milestones
    assert {event.origin for event in events} == {sight.Origin(str(path.parent), 0)}
    assert all(event.step == 7 for event in events if isinstance(event, sight.CheckpointEvent))
    file_bytes = next(path.glob("*.safetensors")).stat().st_size
    for kind in (sight.Submitted, sight.Copied, sight.Written, sight.Published):
        assert only(events, kind).size_bytes == file_bytes
    captured = only(events, sight.Captured)
    assert (captured.num_tensors, captured.size_bytes) == (8, sum(t.nbytes for t in tensors_of(state)))
    assert only(events, sight.Published).path == str(path)
    reached = [only(events, kind).since_begun_s for kind in (sight.Submitted, sight.Copied, sight.Written)]
    assert 0 < reached[0] < reached[1] <= reached[2] <= only(events, sight.Published).since_begun_s
    assert 0 <= only(events, sight.Copied).copy_s <= only(events, sight.Written).write_s
    assert only(events, sight.Begun).monotonic_s <= captured.monotonic_s
    assert only(events, sight.ArenaAllocated).size_bytes == checkpoints.stats().arena_bytes


def tensors_of(state: State) -> list[Any]:
    slots = [item for per in state["optimizer"].state.values() for item in per.values()]
    return [*state["model"].parameters(), *slots]


def test_a_failure_a_prune_and_a_restore(open_checkpoints: Open, events: list[sight.Event], state: State) -> None:
    checkpoints = open_checkpoints(keep_last=1)
    checkpoints.checkpoint(0, state).durable.result(60)
    _elastates.set_fault("write", error=5)
    assert isinstance(checkpoints.checkpoint(1, state).durable.exception(60), CheckpointError)
    _elastates.clear_fault()
    checkpoints.checkpoint(2, state).durable.result(60)
    checkpoints.wait()
    assert checkpoints.restore(state) == 3

    seen(events)
    failed = only(events, sight.Failed)
    assert (failed.step, failed.error_type) == (1, "CheckpointError")
    assert "Input/output error" in failed.error
    checkpoints.close()  # retention runs behind durable
    seen(events)
    assert only(events, sight.Pruned).steps == (0,)
    assert only(events, sight.RestoreEnded).next_step == 3
    assert only(events, sight.RestoreEnded).damaged_steps == ()


def test_damage_is_an_event_and_so_are_falling_back_and_giving_up(
    open_checkpoints: Open, events: list[sight.Event], state: State
) -> None:
    checkpoints = open_checkpoints()
    paths = [checkpoints.checkpoint(step, state).durable.result(60) for step in (0, 1)]
    flip_a_byte(paths[1])
    assert checkpoints.restore(state) == 1
    seen(events)
    assert only(events, sight.DamageFound).step == only(events, sight.RestoreFellBack).step == 1
    assert "rank-00000.safetensors" in only(events, sight.DamageFound).what
    assert only(events, sight.RestoreEnded).damaged_steps == (1,)

    flip_a_byte(paths[0])
    events.clear()
    with pytest.raises(RestoreError):
        checkpoints.restore(state)
    fallen = ["damage_found", "restore_fell_back"]
    assert seen(events) == ["restore_begun", *fallen, *fallen, "restore_failed"]
    assert only(events, sight.RestoreFailed).error_type == "RestoreError"


def test_damage_that_a_reader_finds(open_checkpoints: Open, events: list[sight.Event], state: State) -> None:
    path = open_checkpoints().checkpoint(3, state).durable.result(60)
    reader = open_checkpoint(path)
    assert reader.verify() == []
    assert "damage_found" not in seen(events)
    flip_a_byte(path)
    assert len(reader.verify()) == 1
    seen(events)
    assert only(events, sight.DamageFound).step == 3
    assert "rank-00000.safetensors: checksum mismatch" in only(events, sight.DamageFound).what


def flip_a_byte(checkpoint: Path) -> None:
    path = next(checkpoint.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_skipped_checkpoint(open_checkpoints: Open, storage: Any, events: list[sight.Event], state: State) -> None:
    checkpoints = open_checkpoints(policy="skip", arena_mb=1, chunk_bytes=64 << 10)
    large = {"tensor": torch.zeros(4 << 20, dtype=torch.uint8)}
    storage.hold(opens_at_gate=False)
    first = checkpoints.checkpoint(0, large)
    second = checkpoints.checkpoint(1, large)
    assert second.durable.exception(60) is not None
    storage.release()
    first.durable.result(60)
    seen(events)
    assert only(events, sight.Skipped).step == 1
    assert "rank 0" in only(events, sight.Skipped).reason


# ---- files and logs


@pytest.mark.parametrize("by", ["option", "environment"])
def test_json_lines_of_one_checkpointer(by: str, tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "logs" / "events.jsonl"
    if by == "environment":
        monkeypatch.setenv(EVENTS_VARIABLE, str(path))
    options = {"events": str(path)} if by == "option" else {}
    with Checkpointer(tmp_path / "run", **options) as checkpoints:
        monkeypatch.delenv(EVENTS_VARIABLE, raising=False)
        with Checkpointer(tmp_path / "other") as other:
            other.checkpoint(5, state).durable.result(60)
        checkpoints.checkpoint(4, state).durable.result(60)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["directory"] for line in lines} == {str(tmp_path / "run")}
    assert {line["step"] for line in lines} == {4}
    assert lines[-1]["event"] == "published"
    assert lines[-1]["path"] == str(tmp_path / "run" / "step-00000004")
    assert not bus.sinks

    with Checkpointer(tmp_path / "run", events=str(path)) as again:
        assert again.restore(state) == 5
    appended = path.read_text().splitlines()[len(lines) :]
    assert [json.loads(line)["event"] for line in appended] == ["restore_begun", "restore_ended"]


def test_every_rank_has_a_file_of_its_own() -> None:
    assert file_of_rank("runs/events.jsonl", 0, 1) == Path("runs/events.jsonl")
    assert file_of_rank("runs/events.jsonl", 3, 4) == Path("runs/events-rank-00003.jsonl")


def test_a_logging_sink_warns_of_what_went_wrong(caplog: pytest.LogCaptureFixture) -> None:
    sight.add_sink(sight.LoggingSink("events-of-a-test"))
    origin = sight.Origin("run", 2)
    with caplog.at_level(logging.INFO, "events-of-a-test"):
        sight.emit(sight.Begun(origin, step=3))
        sight.emit(sight.ReplicationFailed(origin, step=3, url="s3://b", error="refused", error_type="OSError"))
        assert sight.flush()
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (logging.INFO, "begun rank=2 step=3"),
        (logging.WARNING, "replication_failed rank=2 step=3 url=s3://b error=refused error_type=OSError"),
    ]


def test_events_are_json_and_one_line() -> None:
    event = sight.Pruned(sight.Origin("run", 0), steps=(1, 2), seconds=0.25, unix_s=10.0, monotonic_s=5.0)
    assert json.loads(json.dumps(event.to_dict())) == {
        "event": "pruned",
        "directory": "run",
        "rank": 0,
        "unix_s": 10.0,
        "monotonic_s": 5.0,
        "steps": [1, 2],
        "seconds": 0.25,
    }
    assert one_line(event) == "pruned rank=0 steps=(1, 2) seconds=0.25"


# ---- sinks that misbehave


def test_a_sink_that_raises_is_reported_once_and_dropped(
    open_checkpoints: Open, events: list[sight.Event], state: State, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: sight.Event) -> None:
        raise OSError("no space for logs")

    sight.add_sink(broken)
    open_checkpoints().checkpoint(0, state).durable.result(60)
    assert "published" in seen(events)  # the others get everything
    assert broken not in bus.sinks
    reports = [record for record in caplog.records if "broken" in record.getMessage()]
    assert len(reports) == 1
    assert reports[0].exc_info is not None


def test_a_sink_that_hangs_holds_up_neither_checkpoints_nor_memory(
    open_checkpoints: Open, state: State, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bus, "MAX_WAITING", 4)
    go_on, taken = threading.Event(), []

    def hanging(event: sight.Event) -> None:
        go_on.wait()
        taken.append(event)

    sight.add_sink(hanging)
    dropped = sight.num_dropped()
    checkpoints = open_checkpoints()
    for step in range(3):
        checkpoints.checkpoint(step, state).durable.result(60)
    assert not sight.flush(0.01)
    assert sight.num_dropped() > dropped
    go_on.set()
    assert sight.flush()
    assert [event.name() for event in taken] == ["begun", "captured", "agreed", "arena_allocated"]
    assert sum("too slow" in record.getMessage() for record in caplog.records) <= 1


def test_a_sink_may_take_itself_off(events: list[sight.Event]) -> None:
    taken = []

    def once(event: sight.Event) -> None:
        taken.append(event)
        sight.remove_sink(once)

    sight.add_sink(once)
    for step in range(3):
        sight.emit(sight.Begun(sight.Origin("run", 0), step=step))
    assert seen(events) == ["begun"] * 3
    assert [event.step for event in taken] == [0]


def test_without_sinks_nothing_is_made(open_checkpoints: Open, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*args: object, **fields: object) -> None:
        raise AssertionError("an event was made for nobody")

    for name in ("Begun", "Captured", "Published", "RestoreBegun", "RestoreEnded"):
        monkeypatch.setattr(events_module, name, unexpected)
    for name in ("Agreed", "ArenaAllocated", "Copied", "Submitted", "Written", "emit"):
        monkeypatch.setattr(saving, name, unexpected)
    checkpoints = open_checkpoints()
    checkpoints.checkpoint(0, state).durable.result(60)
    assert checkpoints.restore(state) == 1
    sight.add_sink(lambda event: None)
    with pytest.raises(AssertionError, match="for nobody"):  # what was replaced is what is used
        checkpoints.checkpoint(1, state)


def test_a_forked_child_tells_nobody(events: list[sight.Event]) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, str(len(bus.sinks)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 10) == b"0"
    os.close(reader)
    os.close(writer)
    assert events.append in bus.sinks


def test_what_is_told_at_exit_reaches_the_file(launch: Launcher, tmp_path: Path) -> None:
    """A script that forgets to close: the drain at exit is in the log to its end."""
    script = tmp_path / "script.py"
    script.write_text(
        "import torch, datastates\n"
        "checkpoints = datastates.Checkpointer('run', events='events.jsonl')\n"
        "checkpoints.checkpoint(3, {'tensor': torch.ones(1000)})\n"
    )
    launch.python(script).wait()
    names = [json.loads(line)["event"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert names[-1] == "published"
