"""The chaos script against real processes that are no training at all: found, struck, reported."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from launching import Launched, Launcher
from polling import until

from elaswave.chaos import acts, cli, report
from elaswave.chaos import strike as strike_module
from elaswave.chaos.plan import Schedule, make_plan
from elaswave.chaos.strike import Done
from elaswave.chaos.targets import Target, find_ranks

JOB = Path(__file__).with_name("chaos_job.py")


@pytest.fixture
def job(launch: Launcher, tmp_path: Path) -> tuple[str, list[Launched]]:
    """Three ranks that keep timelines and listen."""
    name = uuid.uuid4().hex
    env = {"ELASWAVE_JOB": name, "ELASWAVE_TIMELINE": str(tmp_path / "timeline"), "ELASWAVE_CHAOS": "1"}
    ranks = launch.ranks(JOB, num_ranks=3, port=0, env=env)
    for rank in ranks:
        rank.wait_for("STEP 20")
    return name, ranks


def strike(name: str, tmp_path: Path, *options: str) -> tuple[int, dict]:
    """Run the script; returns its exit status and its report."""
    script = Path(__file__).parents[2] / "scripts" / "chaos.py"
    told, drawn = tmp_path / "report.json", tmp_path / "picture.svg"
    command = [sys.executable, script, "--job", name, "--settle-s", "0", "--report", told, "--picture", drawn, *options]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=100)
    if not told.exists():
        return done.returncode, {"said": done.stderr}
    ElementTree.parse(drawn)
    return done.returncode, json.loads(told.read_text())


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# ---- against processes


def test_ranks_are_found_by_their_environment(job: tuple[str, list[Launched]]) -> None:
    name, ranks = job
    found = find_ranks(name)
    assert [(target.rank, target.pid) for target in found] == [(i, rank.pid) for i, rank in enumerate(ranks)]
    assert find_ranks(pid=ranks[1].pid) == found
    assert {target.parent for target in found} == {os.getpid()}
    with pytest.raises(ValueError, match="no ranks of job 'nobody' are running"):
        find_ranks("nobody")


def test_killed_in_the_phase_that_was_named(job: tuple[str, list[Launched]], tmp_path: Path) -> None:
    name, ranks = job
    status, told = strike(name, tmp_path, "--mean-s", "0.01", "--phase", "all-reduce", "--rank", "1")
    assert status == 0
    (act,) = told["acts"]
    assert (act["kind"], act["rank"], act["phase"], act["problem"]) == ("kill", 1, "all-reduce", "")
    ranks[1].wait(expect=-signal.SIGKILL)
    assert [rank.process.poll() for rank in ranks] == [None, -signal.SIGKILL, None]


def test_strikes_follow_the_steps_and_end_with_the_job(job: tuple[str, list[Launched]], tmp_path: Path) -> None:
    name, ranks = job
    status, told = strike(name, tmp_path, "--every-steps", "5", "--events", "9")
    assert status == 3  # nobody is left for the other six
    assert told["by_kind"] == {"kill": 3}
    assert sorted(act["rank"] for act in told["acts"]) == [0, 1, 2]
    assert [rank.wait(expect=-signal.SIGKILL) for rank in ranks] == [-signal.SIGKILL] * 3


def test_a_stopped_rank_wakes_up_again(job: tuple[str, list[Launched]], tmp_path: Path) -> None:
    name, ranks = job
    status, told = strike(name, tmp_path, "--mean-s", "0.01", "--kinds", "stop", "--lasts-s", "0.05")
    (act,) = told["acts"]
    assert status == 0
    assert act["until_s"] > act["at_s"]
    until(lambda: state_of(ranks[act["rank"]].pid) in "RS")


@pytest.mark.parametrize(("kind", "beats"), [("sleep", True), ("hold_gil", False)])
def test_a_rank_fails_from_inside(kind: str, beats: bool, job: tuple[str, list[Launched]], tmp_path: Path) -> None:
    """A thread that sleeps leaves the others running; who holds the GIL leaves nobody."""
    name, ranks = job
    status, _ = strike(name, tmp_path, "--mean-s", "0.01", "--kinds", kind, "--rank", "2")
    assert status == 0
    phase = tmp_path / "timeline" / f"{ranks[2].pid}.timeline.jsonl"
    sizes = [-1]
    until(lambda: sizes[-1] == (sizes.append(phase.stat().st_size) or sizes[-1]) and len(sizes) > 50)
    num_beats = ranks[2].output.count("BEAT")
    if beats:
        until(lambda: ranks[2].output.count("BEAT") > num_beats + 2)
    else:
        until(lambda: ranks[0].output.count("BEAT") > 2 * num_beats + 20)
        assert ranks[2].output.count("BEAT") <= num_beats + 1


def test_who_does_not_listen_is_said(launch: Launcher, tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    ranks = launch.ranks(JOB, num_ranks=1, port=0, env={"ELASWAVE_JOB": name})
    ranks[0].wait_for("READY")
    status, told = strike(name, tmp_path, "--mean-s", "0.01", "--kinds", "sleep")
    assert status == 1
    assert "start the job with ELASWAVE_CHAOS=1" in told["acts"][0]["problem"]
    assert strike(name, tmp_path / "nowhere", "--every-steps", "3")[0] == 2


def test_connections_break_and_the_process_lives(job: tuple[str, list[Launched]]) -> None:
    name, ranks = job
    acts.reset(find_ranks(name)[0], acts.Surroundings())
    ranks[0].wait_for(r"HUNG UP b''")
    assert ranks[0].process.poll() is None


def test_slowed_down_and_let_go(job: tuple[str, list[Launched]]) -> None:
    name, ranks = job
    target = find_ranks(name)[0]
    end = acts._by_turns(target, 0.1)
    until(lambda: state_of(ranks[0].pid) == "T")
    end()
    until(lambda: state_of(ranks[0].pid) in "RS")


def test_a_disk_is_full_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the file system would be filled with is bounded here: no test fills a real disk."""
    usage = acts.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(acts.shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    filled: list[int] = []

    class Full:
        def __init__(self, path: Path, mode: str) -> None:
            filled.append(path.stat().st_size if path.exists() else 0)
            self._file = path.open(mode) if mode == "wb" else None

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            if self._file:
                self._file.close()

        def fileno(self) -> int:
            assert self._file is not None
            return self._file.fileno()

        def write(self, _: bytes) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(acts, "open", Full, raising=False)
    end = acts.full_disk(nobody(), acts.Surroundings(disk=tmp_path))
    assert filled == [0, 1 << 20]
    end()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (acts.partition, "needs --link NAMESPACE:INTERFACE, got ''"),
        (acts.full_disk, "needs --disk"),
        (acts.agent, "no agent"),
    ],
)
def test_what_an_act_needs_is_said(act: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act(nobody(), acts.Surroundings())


def nobody() -> Target:
    return Target(pid=0, rank=0, job="", parent=1, started=0, timeline=None)


# ---- plans and reports


@given(seed=st.integers(0, 1 << 32), num_acts=st.integers(0, 50), num_ranks=st.integers(1, 9))
def test_equal_seeds_give_equal_plans(seed: int, num_acts: int, num_ranks: int) -> None:
    def made() -> list:
        return make_plan(num_acts, seed=seed, kinds=["kill", "stop"], schedule=Schedule(mean_s=2.0), lasts_s=1.0)

    plan = made()
    assert plan == made()
    assert [one.number for one in plan] == list(range(num_acts))
    assert {one.kind for one in plan} <= {"kill", "stop"}
    assert all(one.victim(range(10, 10 + num_ranks)) in range(10, 10 + num_ranks) for one in plan)


def test_a_bad_plan_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown kinds \['flood'\]; known: kill, stop"):
        make_plan(1, seed=0, kinds=["flood"], schedule=Schedule(mean_s=1), lasts_s=1)
    with pytest.raises(ValueError, match="either the mean time"):
        Schedule()


def test_a_report_tells_what_followed_each_act() -> None:
    def act(number: int, at_s: float) -> Done:
        return Done(number=number, kind="kill", rank=0, pid=1, at_s=at_s, until_s=None, phase="")

    notes = [("committed", 0.5), ("committed", 1.01), ("loss", 1.02), ("revoked", 1.03), ("agreed", 1.05)]
    notes += [("edited", 1.06), ("committed", 1.5), ("committed", 2.0), ("loss", 3.25), ("committed", 3.5)]
    mine = [{"what": what, "at_s": at_s, "rank": 1} for what, at_s in notes]
    told = report.make_report([act(0, 1.0), act(1, 3.0)], {1: mine, 2: mine}, seed=7)
    first, second = told["acts"]
    assert {what: round(at_s, 2) for what, at_s in first["ranks"]["2"].items()} == {
        "loss": 0.02,
        "revoked": 0.03,
        "agreed": 0.05,
        "edited": 0.06,
        "committed": 0.5,
    }
    assert second["ranks"] == {"2": {"loss": 0.25, "committed": 0.5}}
    nobody = report.make_report([dataclasses.replace(act(0, 3.0), kind="partition")], {1: mine, 2: mine})
    assert nobody["acts"][0]["ranks"].keys() == {"1", "2"}
    assert (told["loss_s_median"], told["edited_s_median"], told["seed"]) == (
        pytest.approx(0.135),
        pytest.approx(0.06),
        7,
    )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--rank", "7"], "--rank must be one of 0, 1, 2, got 7"),
        (["--lasts-s", "0"], "--lasts-s must be positive, got 0"),
        (["--events", "0"], "--events must be at least 1, got 0"),
        (["--cpu-share", "1"], "--cpu-share must be between 0 and 1"),
        (["--report", "nowhere/r.json"], "--report must be a file that can be written to"),
        (["--pid", "4194305"], "--pid must be a running process that this user may look at, got 4194305"),
    ],
)
def test_wrong_options_strike_nobody(
    options: list[str],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ranks = [Target(pid=1 << 23, rank=rank, job="j", parent=0, started=0, timeline=None) for rank in range(3)]
    if "--pid" not in options:
        monkeypatch.setattr(cli, "find_ranks", lambda job, pid: ranks)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert cli.main(["--mean-s", "0.01", "--job", "j", *options]) == 2
    assert complaint in capsys.readouterr().err


def test_an_act_that_fails_is_a_problem_and_no_crash() -> None:
    """A process that has ended is not struck, whoever has its pid now; a cable that is not there is said."""
    mine = Target(pid=os.getpid(), rank=0, job="j", parent=0, started=1, timeline=None)
    for kind in ("kill", "stop", "partition", "agent"):
        (plan,) = make_plan(1, seed=0, kinds=[kind], schedule=Schedule(mean_s=0.001), lasts_s=0.001)
        around = acts.Surroundings(link="elastates-nowhere:eth0")
        assert strike_module._act(plan, mine, around, threading.Event()).problem, kind


def test_a_victim_that_ends_while_its_phase_is_awaited_gives_way_to_another(tmp_path: Path) -> None:
    gone = Target(pid=os.getpid(), rank=0, job="j", parent=0, started=1, timeline=tmp_path)
    (tmp_path / f"{os.getpid()}.phase").write_bytes(b"other\n")
    found = iter([[gone], [find_started(os.getpid())]])
    (plan,) = make_plan(1, seed=0, kinds=["kill"], schedule=Schedule(mean_s=0.001, phase=""), lasts_s=1)
    assert strike_module._wait_for_turn(plan, lambda: next(found), threading.Event()).is_alive


def find_started(pid: int) -> Target:
    started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return Target(pid=pid, rank=0, job="j", parent=0, started=started, timeline=None)
