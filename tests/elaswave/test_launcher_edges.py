"""The launcher where things go wrong beside the ranks: output, files, starts that overlap with ends, meetings again."""

import asyncio
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import Launcher

from elaswave import agent_link, witness
from elaswave.errors import LaunchError
from elaswave.launcher import agent, runs, staff
from elaswave.launcher.channel import Channel
from elaswave.launcher.console import READ_BYTES, Console
from elaswave.launcher.links import Links, Met
from elaswave.launcher.options import Options
from elaswave.launcher.plan import Node, WorkerPlan
from elaswave.launcher.worker import Worker
from elaswave.timeouts import Timeouts
from elaswave.views import Ranks

RANK_SCRIPT = Path(__file__).parent / "launched_rank.py"


# ---- output


def test_output_is_passed_on_whatever_it_is(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    garbage, endless = bytes(range(256)), b"\xfe" * (2 * READ_BYTES + 1)
    (tmp_path / "out").write_bytes(garbage + b"\n" + endless)
    with Console("test") as console:
        console.follow(tmp_path / "nowhere" / "out", "[rank 1] ", is_error=False)
        console.follow(tmp_path / "out", "[rank 0] ", is_error=False)
        console.unfollow(tmp_path / "out")
        console.say("the end")
    out, err = capfdbinary.readouterr()
    assert out.startswith(b"[rank 0] \0\1\2")
    assert garbage.rpartition(b"\n")[2] in out
    assert out.count(b"\xfe") == len(endless) + 1
    assert max(map(len, out.split(b"\n"))) < 2 * READ_BYTES + len("[rank 0] ")
    assert b"nowhere/out is not shown here" in err
    assert err.endswith(b"[test] the end\n")


def test_logs_and_results_of_every_run_of_a_job_are_its_own(launch: Launcher, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "node-0").write_text("0\n")  # of an earlier job
    options = ["--max-restarts", "1", "--log-dir", "logs", "--result-dir", "results"]
    job = launch([sys.executable, "-m", "elaswave.launcher", *options, RANK_SCRIPT, "all:exit=4"])
    job.wait(expect=4)
    first, second = ((tmp_path / "logs" / there / "rank-00000.0.out").read_text() for there in (".", "restart-1"))
    assert first != second
    assert "pid" in first
    assert "pid" in second
    assert (tmp_path / "results" / "node-0").read_text() == "4\n"


def test_a_result_that_cannot_be_left_is_said_before_anything_starts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert runs.run(Options(command=(str(RANK_SCRIPT),), result_dir=tmp_path / "file" / "results")) == 2
    out, err = capfd.readouterr()
    assert "Not a directory" in err
    assert out == ""


# ---- the agent


def test_whoever_is_being_started_when_all_end_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_go_on, started = threading.Event(), threading.Event(), []

    class SlowWorker(Worker):
        def __init__(self, plan: WorkerPlan) -> None:
            begun.set()
            assert may_go_on.wait(60)
            super().__init__(plan)
            started.append(self)

    monkeypatch.setattr(staff, "Worker", SlowWorker)
    sleeper = WorkerPlan(title="rank 0", command=("sleep", "600"), env={}, out=None, err=None)

    async def start_and_end() -> None:
        people = staff.Staff(Console("test"), lambda process, status: None)
        start = asyncio.create_task(people.start(sleeper, token="t", rank=0, attempt=0))
        await asyncio.to_thread(begun.wait, 60)
        end = asyncio.create_task(people.end())
        await asyncio.sleep(0)  # it begins
        may_go_on.set()
        await asyncio.gather(start, end)

    asyncio.run(start_and_end())
    assert started[0].is_reaped


def test_a_callback_that_fails_ends_the_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of order")

    (tmp_path / "script.py").touch()
    monkeypatch.setattr(agent.Agent, "_report", fail)
    one = agent.Agent(Options(command=(str(tmp_path / "script.py"),)), Console("test"), is_shim=False)
    with pytest.raises(RuntimeError, match="out of order"):
        asyncio.run(asyncio.wait_for(one.run(), 60))


# ---- connections


@pytest.mark.parametrize("sent", [b"[" * 100_000 + b"\n", b"[]\n", b"{\n"])
def test_nonsense_on_a_channel_is_a_value_error(sent: bytes) -> None:
    async def receive() -> None:
        reader = asyncio.StreamReader(limit=1 << 20)
        reader.feed_data(sent)
        await Channel(reader, None).receive()  # type: ignore[arg-type]

    with pytest.raises(ValueError, match=r"JSON|Expecting"):
        asyncio.run(receive())


def test_a_cable_that_was_cut_is_the_end_of_a_channel() -> None:
    async def receive() -> object:
        reader = asyncio.StreamReader()
        reader.set_exception(TimeoutError(110, "Connection timed out"))
        return await Channel(reader, None).receive()  # type: ignore[arg-type]

    assert asyncio.run(receive()) is None


class _Nobody:
    def heard(self, node: int, message: object) -> None: ...
    def agent_lost(self, node: int, why: str) -> None: ...
    def agent_arrived(self, node: Node) -> list[dict[str, object]]:
        return []


def test_agents_that_begin_anew_wait_for_the_run_before_to_end(free_port: int) -> None:
    """The first agent still ends the old run when the second is back: that run takes in nobody."""

    def node(number: int) -> Node:
        return Node(node=number, host="127.0.0.1", port=0, store_port=0, num_workers=1, num_spares=0)

    def links(number: int, said: Callable[[str], None], *, begins_anew: bool = True) -> Links:
        where = (f"127.0.0.1:{free_port}",)
        options = Options(command=("x",), num_nodes=2, node_rank=number, meeting_points=where, secret="5e")
        return Links(options, "5e", _Nobody(), complain=said, spawn=asyncio.create_task, begins_anew=begins_anew)  # type: ignore[arg-type]

    async def meet() -> tuple[Met, Met]:
        refused = asyncio.Event()
        old = [links(number, lambda text: refused.set(), begins_anew=False) for number in range(2)]
        await asyncio.gather(*(one.meet(node(number), "old") for number, one in enumerate(old)))
        for one in old:
            one.begin()
        await old[1].close()
        new = [links(number, print) for number in range(2)]
        second = asyncio.create_task(new[1].meet(node(1), "new"))
        await refused.wait()
        await old[0].close()
        met = await asyncio.gather(new[0].meet(node(0), "new"), second)
        await asyncio.gather(*(one.close() for one in new))
        return met

    met = asyncio.run(asyncio.wait_for(meet(), 60))
    assert [one.job.job for one in met] == ["new", "new"]


# ---- in the ranks


def test_a_listener_that_fails_keeps_no_fence_from_being_sent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail(event: dict[str, object]) -> None:
        raise KeyError("a mistake")

    server, heard = socket.socket(socket.AF_UNIX), threading.Event()
    server.bind(str(tmp_path / "agent"))
    server.listen()
    link = agent_link.AgentLink(str(tmp_path / "agent"), "token")
    link.subscribe(fail)
    link.subscribe(lambda event: heard.set() if event["event"] == "death" else None)
    here, _ = server.accept()
    with here, here.makefile("r") as lines:
        assert lines.readline() == '{"token": "token"}\n'
        here.sendall(b'{"event": "death", "rank": 1}\n')
        assert heard.wait(60)
        link.kill("member")
        assert lines.readline() == '{"kill": "member"}\n'
        here.sendall(b'{"event": "dea')  # it is killed while it speaks
    link._reader.join(60)
    assert "a listener to the news of the agent failed" in caplog.text
    assert "a mistake" in caplog.text
    with pytest.raises(LaunchError, match="the agent of this node has ended"):
        link.kill("another")
    server.close()


def death(rank: int, *, attempt: int, status: int) -> dict[str, object]:
    return {"event": "death", "rank": rank, "attempt": attempt, "status": status, "how": f"exited with {status}"}


def test_newcomers_are_too_late_when_all_who_were_let_in_have_ended() -> None:
    ranks = Ranks()
    for rank in range(2):
        ranks.hear({"event": "started", "rank": rank, "attempt": 0})
        ranks.hear(death(rank, attempt=0, status=1))
        ranks.hear({"event": "started", "rank": rank, "attempt": 1})
    assert (ranks.end_of_first(0), ranks.end_of_first(2)) == ("exited with 1", "")
    ranks.hear({"event": "entered", "rank": 0, "attempt": 1})
    assert not ranks.is_too_late()
    ranks.hear(death(0, attempt=1, status=0))
    assert ranks.is_too_late()


def test_who_comes_late_knows_that_the_first_process_of_a_rank_has_ended() -> None:
    ranks = Ranks()
    ranks.hear({"event": "started", "rank": 0, "attempt": 3})
    assert ranks.end_of_first(0) == "ended"


def test_a_rank_that_dies_before_it_joins_is_named_by_all_others(launch: Launcher, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import os, elaswave\nif os.environ['RANK'] == '0': raise SystemExit(5)\nelaswave.join()\n"
    )
    job = launch([sys.executable, "-m", "elaswave.launcher", "--nproc-per-node", "2", "script.py"])
    assert job.wait(expect=None) != 0
    assert "rank 1: rank 0 of 2 exited with 5 before it had joined" in job.output


# ---- what is wrong in the environment


def test_wrong_variables_are_named(tmp_path: Path) -> None:
    import elaswave

    for text in ("abc", "-1", "nan"):
        with pytest.raises(LaunchError, match=f"ELASWAVE_FAILURE_TIMEOUT_S must be a positive .* got '{text}'"):
            Timeouts.from_environment({"ELASWAVE_FAILURE_TIMEOUT_S": text})
    with pytest.raises(LaunchError, match=r"ELASWAVE_WITNESS.* must be a file .* got '.*nowhere/w'"):
        witness.from_environment({"ELASWAVE_WITNESS": str(tmp_path / "nowhere" / "w")})
    with pytest.raises(LaunchError, match=r"'mpi' is not offered.*elaswave.transports.mpi"):
        elaswave.join("mpi", environment={})


def test_joining_twice_is_refused_and_joining_again_is_not(launch: Launcher, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import elaswave\nrun = elaswave.join()\n"
        "try: elaswave.join()\nexcept elaswave.LaunchError as error: print('refused:', error)\n"
        "run.close()\nprint('again', elaswave.join().num_ranks)\n"
    )
    job = launch([sys.executable, "-m", "elaswave.launcher", "script.py"])
    job.wait()
    assert "refused: this process has a default process group already" in job.output
    assert "again 1" in job.output
