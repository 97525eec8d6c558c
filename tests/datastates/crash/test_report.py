"""The report and the published matrix say what was found, and fail when something was."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.crash import matrix
from benchmarks.crash.flips import Damaged
from benchmarks.crash.kills import Killed
from benchmarks.crash.replay import Mutation, Replayed
from benchmarks.crash.verdict import Problem
from benchmarks.faults import passed, report

EFFORT = {"effort": {"seed": 0}, "seconds": 1.0}
CAUGHT = Mutation("publish: sync(path)", "saving, before mkdir runs/gpt/.tmp-step-00000001-0a0b0c0d: lost: step 0", 9)


def figures(
    *problems: tuple[str, Problem], killed: Killed | None = None, mutation: Mutation = CAUGHT
) -> dict[str, Any]:
    replayed = {"saving": Replayed(7, 3, list(problems))}
    return report(replayed, [mutation], killed or Killed(crash_points=5), Damaged()) | EFFORT


def test_without_problems_it_passes_and_says_so() -> None:
    found = figures()
    assert passed(found)
    assert json.loads(json.dumps(found)) == found
    assert (found["replayed_states"], found["crash_points"], found["lost"], found["fsyncs_caught"]) == (7, 5, 0, 1)
    rows = matrix.table(matrix.measured_rows(found))
    assert "| power cut | saving | 7 states, 3 moments |" in rows
    assert "not" not in rows.replace("what must follow", "")


@pytest.mark.parametrize("kind", ["lost", "wrong_bytes", "ruins"])
def test_every_problem_fails_it_and_is_counted(kind: str) -> None:
    found = figures(("saving, before mkdir", Problem(kind, "why")))
    assert not passed(found)
    assert found[kind] == 1
    assert found["problems"] == [f"saving, before mkdir: {kind}: why"]
    assert "| power cut | saving | 7 states, 3 moments |" in (rows := matrix.table(matrix.measured_rows(found)))
    assert "**1 times not**" in rows


def test_a_problem_after_a_kill_fails_it() -> None:
    killed = Killed(crash_points=5, lost=1, problems=["killed before operation 3: lost: why"])
    found = figures(killed=killed)
    assert not passed(found)
    assert found["lost"] == 1
    assert "**1 times not**" in matrix.table(matrix.measured_rows(found))


def test_an_fsync_that_nothing_misses_fails_it() -> None:
    found = figures(mutation=Mutation("publish: sync(path)", "", 900))
    assert not passed(found)
    assert "| `publish: sync(path)` | **none** |" in matrix.fsyncs(found)


def test_the_page_keeps_its_prose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "TESTED", ())
    page = tmp_path / "page.md"
    page.write_text(f"before\n{matrix.BEGIN}\nold\n{matrix.END}\nafter\n")
    for _ in range(2):
        matrix.write_matrix(page, figures())
    text = page.read_text()
    assert text.startswith(f"before\n{matrix.BEGIN}\n")
    assert text.endswith(f"\n{matrix.END}\nafter\n")
    assert "old" not in text
    assert "| `publish: sync(path)` | saving, before mkdir .tmp-step | a durable checkpoint |" in text
