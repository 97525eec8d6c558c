"""The published matrix: what was done to checkpoints, how often, and what came of it, from the results themselves."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.crash.runs import REPOSITORY

BEGIN, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"

KILLED = ("killed before operation", "after operation")
"""How problems after a kill begin."""
HEAD = ("what", "where", "how often", "what must follow", "and did it")


@dataclass(frozen=True)
class Tested:
    """A row that tests stand for, and not a count."""

    what: str
    where: str
    follows: str
    tests: tuple[str, ...]
    """Arguments of pytest."""


TESTED = (
    Tested(
        "ENOSPC, EDQUOT, EIO, short and interrupted calls",
        "injected at every operation of a checkpoint",
        "that checkpoint fails, says why and leaves nothing; the next one succeeds",
        ("tests/datastates/test_failures.py", "-k", "storage_fault or short_writes or interrupted"),
    ),
    Tested(
        "a full file system",
        "tmpfs; ext4 on a loop device",
        "StorageFullError; what was published stays whole; goes on when there is room",
        ("tests/datastates/crash/test_full_disk.py",),
    ),
    Tested(
        "a second job",
        "writes to the directory of a running one",
        "refused; host and pid of the other are named",
        ("tests/datastates/test_directory.py", "-k", "second"),
    ),
    Tested(
        "a rank that dies",
        "SIGKILL to one of two ranks, before and within a checkpoint",
        "the other names it within the deadline",
        ("tests/datastates/test_distributed.py", "-k", "dies or dead or death or killed"),
    ),
    Tested(
        "a rank that hangs",
        "SIGSTOP to one of two ranks",
        "the other names it within the deadline; nothing is published",
        ("tests/datastates/crash/test_hung_rank.py",),
    ),
    Tested(
        "a clock that jumps",
        "backwards and forwards, between checkpoints",
        "the newest checkpoint is that of the highest step",
        ("tests/datastates/crash/test_clock.py",),
    ),
    Tested(
        "hostile manifests and headers",
        "a newer version; sizes, offsets, names; fuzzed",
        "DamagedCheckpointError; nothing outside the checkpoint is touched",
        ("tests/fuzz", "tests/datastates/test_manifest.py"),
    ),
)


def write_matrix(page: Path, figures: Mapping[str, Any]) -> None:
    """Put the matrix between its two marks in a page; runs the tests that stand for some of its rows."""
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    tested = [_tested_row(row) for row in TESTED]
    content = "\n\n".join([summary(figures), table([*measured_rows(figures), *tested]), fsyncs(figures)])
    page.write_text(f"{before}{BEGIN}\n{content}\n{END}{after}")


def measured_rows(figures: Mapping[str, Any]) -> list[Sequence[str]]:
    """What ``benchmarks/faults.py`` counted."""
    problems = figures["problems"]
    rows: list[Sequence[str]] = []
    for name, run in figures["runs"].items():
        done = f"{run['states']} states, {run['moments']} moments"
        found = sum(line.startswith(f"{name}, ") for line in problems)
        rows.append(
            ("power cut", name, done, "newest durable step restored bit for bit, the others whole", _did(found))
        )
    kills = (f"{figures['crash_points']} kills", "the same", _did(sum(line.startswith(KILLED) for line in problems)))
    rows.append(("SIGKILL", "before every operation of a job, and of the one that goes on", *kills))
    found = figures["undetected"] + figures["misnamed"]
    for kind, number in figures["bit_flips_by_kind"].items():
        rows.append(
            ("a bit flipped", kind, f"{number} flips", "found; the file and its tensors are named", _did(found))
        )
    cuts = (f"{figures['truncations']} sizes", "found; the file is named", _did(found))
    rows.append(("a file cut or grown", "every file of a checkpoint", *cuts))
    return rows


def _tested_row(row: Tested) -> Sequence[str]:
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [sys.executable, "-P", "-m", "pytest", "-q", *row.tests, f"--junitxml={report}"]
        subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False)
        suite = ElementTree.parse(report).getroot()[0]
    failed, skipped = int(suite.get("failures", 0)) + int(suite.get("errors", 0)), int(suite.get("skipped", 0))
    passed = int(suite.get("tests", 0)) - failed - skipped
    how_often = f"{passed} tests" + (f" ({skipped} skipped here)" if skipped else "")
    return (row.what, row.where, how_often, row.follows, _did(failed) if passed else "**not shown here**")


def fsyncs(figures: Mapping[str, Any]) -> str:
    """Which fsync is needed for what: the first state that shows its absence."""
    rows = [("fsync left out, by the line that asks for it", "power cut that shows it", "what it costs")]
    rows += [(f"`{done['site']}`", *_told(done["caught_by"])) for done in figures["fsyncs"]]
    return table(rows, head=())


def summary(figures: Mapping[str, Any]) -> str:
    """The figures of the whole run in one sentence."""
    counted = ("lost", "ruins", "undetected", "misnamed", "wrong_bytes")
    zeros = ", ".join(f"{key.replace('_', ' ')} {figures[key]}" for key in counted)
    return (
        f"`benchmarks/faults.py`, seed {figures['effort']['seed']}, {figures['seconds']:.0f} s: "
        f"{figures['replayed_states']} states replayed, {figures['crash_points']} processes killed, "
        f"{figures['bit_flips']} bits flipped; {zeros}; {figures['fsyncs_caught']} of {figures['fsyncs_removed']} "
        "fsyncs missed when left out."
    )


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = HEAD) -> str:
    """A Markdown table; without ``head`` the first row is it."""
    first, *others = [head, *rows] if head else rows
    lines = [first, ["---"] * len(first), *others]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _did(problems: int) -> str:
    return "yes" if problems == 0 else f"**{problems} times not**"


COSTS = {"lost": "a durable checkpoint", "ruins": "a published step is in ruins", "wrong_bytes": "values are wrong"}


def _told(caught_by: str) -> tuple[str, str]:
    """(moment, cost) of a mutation's first problem, without paths of the machine and random names."""
    if not caught_by:
        return "**none**", ""
    moment, kind, _ = caught_by.split(": ", 2)
    return re.sub(r"runs/gpt/|-[0-9a-f]{8}\b", "", moment), COSTS[kind]
