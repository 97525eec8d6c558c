"""The launch fixture: what it waits for, and that nothing it started lives on."""

import os
import signal
import textwrap
from pathlib import Path

import pytest
from launching import Launched, Launcher, LaunchError

# A parent whose child sits in a session of its own, as torchrun's workers do.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
print("child", child.pid)
child.wait()
"""


def start(launch: Launcher, tmp_path: Path, program: str) -> Launched:
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(program))
    return launch.python(script)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # an orphan killed a moment ago may not have been reaped by init yet


def test_wait_for_returns_the_match(launch: Launcher, tmp_path: Path) -> None:
    launched = start(launch, tmp_path, "print('step 7 done')")
    assert launched.wait_for(r"step (\d+)")[1] == "7"
    assert launched.wait() == 0


def test_wait_for_says_what_was_printed_instead(launch: Launcher, tmp_path: Path) -> None:
    launched = start(launch, tmp_path, "print('something else')")
    with pytest.raises(LaunchError, match=r"before its output ended.*\n.*something else"):
        launched.wait_for("never printed")


def test_an_unexpected_exit_status_fails_with_the_output(launch: Launcher, tmp_path: Path) -> None:
    launched = start(launch, tmp_path, "import sys; sys.exit('out of luck')")
    with pytest.raises(LaunchError, match=r"exit status 1, expected 0;.*\nout of luck"):
        launched.wait()


def test_a_process_that_runs_on_is_killed(launch: Launcher, tmp_path: Path) -> None:
    launched = start(launch, tmp_path, "import signal; signal.pause()")
    with pytest.raises(LaunchError, match=r"still running after 0.1 s"):
        launched.wait(timeout_s=0.1)
    assert launched.process.returncode == -signal.SIGKILL


def test_kill_reaches_children_in_other_sessions(launch: Launcher, tmp_path: Path) -> None:
    launched = start(launch, tmp_path, PARENT)
    child_pid = int(launched.wait_for(r"child (\d+)")[1])
    assert set(launched.pids()) == {launched.pid, child_pid}
    launched.kill()
    assert launched.pids() == []
    assert not is_running(child_pid)


def test_kill_reaches_orphans(launch: Launcher, tmp_path: Path) -> None:
    launched = start(launch, tmp_path, PARENT)
    child_pid = int(launched.wait_for(r"child (\d+)")[1])
    launched.signal(signal.SIGKILL)
    assert launched.wait(expect=None) == -signal.SIGKILL
    assert is_running(child_pid)
    launched.kill()
    assert not is_running(child_pid)


def test_ranks_are_told_who_they_are(launch: Launcher, tmp_path: Path, free_port: int) -> None:
    script = tmp_path / "rank.py"
    script.write_text("import os; print(os.environ['RANK'], os.environ['WORLD_SIZE'], os.environ['MASTER_PORT'])")
    ranks = launch.ranks(script, num_ranks=2, port=free_port)
    assert [rank.wait() for rank in ranks] == [0, 0]
    assert [rank.output for rank in ranks] == [f"{rank} 2 {free_port}\n" for rank in range(2)]


def test_the_test_process_itself_is_never_a_target(launch: Launcher, tmp_path: Path) -> None:
    launched = start(launch, tmp_path, "import signal; print('ready'); signal.pause()")
    launched.wait_for("ready")
    assert os.getpid() not in launched.pids()
