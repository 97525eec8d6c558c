"""The file system that forgets: what it holds on to, what it may lose, on runs of a few operations."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.crash.disk import Disk
from benchmarks.crash.log import Operation
from benchmarks.crash.power_loss import Decision, State, decisions, state

ROOT = Path("/root")
Tree = dict[str, bytes | None]


def operations(*told: dict[str, Any]) -> list[Operation]:
    """A log of operations one after the other, 10 ns each."""
    log = []
    for number, fields in enumerate(told):
        began_ns = 10 * number + 1
        fields = {"began_ns": began_ns, "ended_ns": began_ns + 5, **fields}
        log.append(Operation(**{**fields, "path": str(ROOT / fields["path"])}))
    return log


def create(path: str, **more: Any) -> dict[str, Any]:
    return {"op": "create", "path": path, **more}


def write(path: str, data: bytes, offset: int = 0, **more: Any) -> dict[str, Any]:
    return {"op": "write", "path": path, "data": data, "offset": offset, "result": len(data), **more}


def fsync(path: str, **more: Any) -> dict[str, Any]:
    return {"op": "fsync", "path": path, **more}


def sync_directory(path: str = "", **more: Any) -> dict[str, Any]:
    return {"op": "fsync_directory", "path": path, **more}


def rename(path: str, to: str, **more: Any) -> dict[str, Any]:
    return {"op": "rename", "path": path, "destination": str(ROOT / to), **more}


def trees(*told: dict[str, Any], initial: dict[str, bytes] | None = None, num: int = 600) -> list[Tree]:
    """Different trees that a power cut after these operations could leave."""
    disk = Disk(ROOT, initial or {}, operations(*told))
    found: dict[bytes, State] = {}
    for _, decision in zip(range(num), decisions(disk, seed=1), strict=False):
        reached = state(disk, decision)
        found[reached.digest()] = reached
    return [dict(reached.tree) for reached in found.values()]


def test_what_is_synced_with_its_name_is_there_for_certain() -> None:
    assert trees(create("a"), write("a", b"xy"), fsync("a"), sync_directory()) == [{"a": b"xy"}]


def test_a_synced_file_without_a_synced_name_may_be_gone() -> None:
    found = trees(create("a"), write("a", b"xy"), fsync("a"))
    assert {"a": b"xy"} in found
    assert {} in found
    assert len(found) == 2


def test_a_name_without_its_bytes_is_empty_zeros_or_torn() -> None:
    found = trees(create("a"), write("a", b"x" * 1024), sync_directory())
    assert {"a": b""} in found
    assert {"a": bytes(1024)} in found
    assert {"a": b"x" * 512 + bytes(512)} in found
    assert {"a": b"x" * 512} in found
    assert {"a": bytes(512) + b"x" * 512} in found
    assert {} not in found


def test_bytes_written_after_the_fsync_are_open_those_before_are_not() -> None:
    found = trees(create("a"), write("a", b"1" * 512), fsync("a"), write("a", b"2" * 512, 512), sync_directory())
    assert {"a": b"1" * 512} in found
    assert {"a": b"1" * 512 + b"2" * 512} in found
    assert all((tree["a"] or b"")[:512] == b"1" * 512 for tree in found)


def test_a_write_that_ends_while_the_fsync_runs_is_open() -> None:
    log = operations(
        create("a"), write("a", b"x" * 512, began_ns=20, ended_ns=40), sync_directory(began_ns=50, ended_ns=60)
    )
    log.append(Operation(op="fsync", path=str(ROOT / "a"), began_ns=30, ended_ns=70))
    disk = Disk(ROOT, {}, sorted(log, key=lambda done: done.began_ns))
    assert [len(file.pending) for file in disk.files.values()] == [1]


def test_renames_reach_the_disk_in_any_order() -> None:
    two = {"a": b"A", "b": b"B"}
    found = trees(rename("a", "c"), rename("b", "d"), initial=two)
    wanted: list[Tree] = [
        {"a": b"A", "b": b"B"},
        {"c": b"A", "b": b"B"},
        {"a": b"A", "d": b"B"},
        {"c": b"A", "d": b"B"},
    ]
    assert all(tree in found for tree in wanted)
    assert len(found) == 4


def test_a_rename_is_atomic() -> None:
    assert all(len(tree) == 1 for tree in trees(rename("a", "b"), initial={"a": b"A"}))


def test_a_removal_may_reach_the_disk_before_the_rename_of_its_directory() -> None:
    found = trees(rename("step", "old"), {"op": "unlink", "path": "old/a"}, initial={"step/a": b"A", "step/b": b"B"})
    assert {"step": None, "step/b": b"B"} in found


def test_a_hard_link_shares_bytes_and_has_a_name_of_its_own() -> None:
    link = {"op": "link", "path": "a", "destination": str(ROOT / "b")}
    found = trees(create("a"), write("a", b"xy"), link, fsync("b"), sync_directory())
    assert found == [{"a": b"xy", "b": b"xy"}]
    assert {"b": b"xy"} in trees(create("a"), write("a", b"xy"), link, fsync("b"))


def test_what_another_machine_did_is_not_covered() -> None:
    told = (create("a", client=1), create("b"), sync_directory())
    found = trees(*told)
    assert {"b": b""} in found
    assert {"a": b"", "b": b""} in found
    assert trees(*told, sync_directory(client=1)) == [{"a": b"", "b": b""}]


def test_a_directory_and_its_entries_are_synced_apart() -> None:
    found = trees({"op": "mkdir", "path": "d"}, create("d/a"), sync_directory("d"))
    assert found == [{"d": None, "d/a": b""}, {}]


def test_operations_that_failed_did_nothing_and_those_outside_are_not_looked_at() -> None:
    outside = {"op": "unlink", "path": "/elsewhere/a"}
    assert trees({"op": "unlink", "path": "a", "result": -2}, outside, initial={"a": b"A"}) == [{"a": b"A"}]


@pytest.mark.parametrize("cut", [1, 2])
def test_the_power_goes_before_the_moment_s_operation(cut: int) -> None:
    log = operations(create("a"), sync_directory(), create("b"), sync_directory())
    disk = Disk(ROOT, {}, log, moment_ns=log[2 * cut - 1].began_ns)
    kept = frozenset(range(len(disk.names)))
    assert sorted(state(disk, Decision(kept)).tree) == ["a", "b"][:cut]
    assert sorted(state(disk, Decision(frozenset())).tree) == ["a", "b"][: cut - 1]
