"""Processes that end, fork or are interrupted while a checkpoint is under way; each is a real one."""

import signal
import sys
from pathlib import Path

import torch
from held_storage import stored_tensors
from launching import Launched, Launcher

PREAMBLE = """
import os, signal, sys, threading
import torch
import datastates, datastates.checkpointer, _elastates
from datastates.handle import Checkpoint

signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
model = torch.nn.Linear(600, 600)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
state = {"model": model, "optimizer": optimizer}
checkpoints = datastates.Checkpointer("run", arena_mb=1, chunk_bytes=65536)

def hold():
    _elastates.set_fault("write", times=2**31 - 1, hold=True)

def step():
    model(torch.ones(1, 600)).sum().backward()
    optimizer.step()
"""


def start(launch: Launcher, tmp_path: Path, body: str) -> Launched:
    script = tmp_path / "script.py"
    script.write_text(PREAMBLE + body)
    return launch([sys.executable, script], cwd=tmp_path)


def test_exits_without_close_neither_hang_nor_crash_and_keep_the_checkpoint(launch: Launcher, tmp_path: Path) -> None:
    """A thread that came back from native code into an interpreter going down would abort the process."""
    exits = {"": 0, "raise ValueError('mine')": 1, "checkpoints.gate(); sys.exit(3)": 3, "del checkpoints": 0}
    started = []
    for number, leaving in enumerate(exits):
        directory = tmp_path / str(number)
        directory.mkdir()
        started.append(start(launch, directory, f"checkpoints.checkpoint(0, state)\n{leaving}\n"))
    for launched, status in zip(started, exits.values(), strict=True):
        launched.wait(expect=status)
        assert "terminate" not in launched.output
    for number in range(len(exits)):
        run = tmp_path / str(number) / "run"
        assert [path.name for path in run.glob("*step*")] == ["step-00000000"]
        assert stored_tensors(run / "step-00000000").keys() == {"model.weight", "model.bias"}


def test_an_exit_does_not_wait_for_storage_that_hangs(launch: Launcher, tmp_path: Path) -> None:
    body = """
datastates.checkpointer.EXIT_TIMEOUT_S = 0.5
hold()
checkpoints.checkpoint(0, state)
"""
    launched = start(launch, tmp_path, body)
    launched.wait(expect=0)
    assert "gave up the last checkpoints after 0 s" in launched.output
    assert not list((tmp_path / "run").glob("step-*"))


def test_a_signal_ends_a_wait_at_the_gate(launch: Launcher, tmp_path: Path) -> None:
    body = """
wait = Checkpoint.wait_groups_copied
def told(checkpoint, groups):
    print("at the gate", flush=True)
    wait(checkpoint, groups)
Checkpoint.wait_groups_copied = told
hold()
checkpoints.checkpoint(0, state)
try:
    step()
except KeyboardInterrupt:
    print("interrupted")
_elastates.clear_fault()
checkpoints.close()
print("published", checkpoints.steps())
"""
    launched = start(launch, tmp_path, body)
    launched.wait_for("at the gate")
    launched.signal(signal.SIGINT)
    launched.wait_for("interrupted", timeout_s=30)
    launched.wait_for(r"published \[0\]")
    launched.wait()


def test_a_drain_that_a_signal_ended_is_gated_and_made_up_for_at_exit(launch: Launcher, tmp_path: Path) -> None:
    body = """
before = model.weight.detach().clone()
torch.save(before, "expected.pt")
hold()
checkpoints.checkpoint(0, state)
try:
    print("closing", flush=True)
    checkpoints.close()
except KeyboardInterrupt:
    print("interrupted")
wait = Checkpoint.wait_groups_copied
def open_gate(checkpoint, groups):
    _elastates.clear_fault()
    wait(checkpoint, groups)
Checkpoint.wait_groups_copied = open_gate
step()
assert not torch.equal(model.weight, before)
_elastates.clear_fault()
"""
    launched = start(launch, tmp_path, body)
    launched.wait_for("closing")
    launched.signal(signal.SIGINT)
    launched.wait_for("interrupted", timeout_s=30)
    launched.wait()
    stored = stored_tensors(tmp_path / "run" / "step-00000000")
    assert torch.equal(stored["model.weight"], torch.load(tmp_path / "expected.pt"))


def test_a_forked_child_waits_at_no_gate_and_leaves_by_any_door(launch: Launcher, tmp_path: Path) -> None:
    """It has none of its parent's threads: who waited for them would wait for ever."""
    body = """
checkpoints.checkpoint(0, state).durable.result()
hold()
taken = checkpoints.checkpoint(1, state)
pid = os.fork()
if pid == 0:
    step()
    checkpoints.gate()
    try:
        checkpoints.checkpoint(2, state)
    except datastates.CheckpointError as error:
        print("child:", error, flush=True)
    checkpoints.close()
    del checkpoints
    sys.exit(7)
print("child left with", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
_elastates.clear_fault()
taken.durable.result()
checkpoints.close()
print("published", checkpoints.steps())
"""
    launched = start(launch, tmp_path, body)
    launched.wait_for("child: this checkpointer is closed", timeout_s=30)
    launched.wait_for("child left with 7", timeout_s=30)
    launched.wait_for(r"published \[0, 1\]")
    launched.wait()


def test_a_forked_child_does_not_keep_the_directory_of_a_dead_parent(launch: Launcher, tmp_path: Path) -> None:
    """A data loader's worker outlives a killed trainer for a while; the job that resumes must not wait for it."""
    body = """
checkpoints.checkpoint(0, state).durable.result()
if os.fork() == 0:
    print("child", os.getpid(), flush=True)
    signal.pause()
signal.pause()
"""
    first = start(launch, tmp_path, body)
    child = int(first.wait_for(r"child (\d+)")[1])
    first.signal(signal.SIGKILL)
    assert first.wait(expect=None) == -signal.SIGKILL
    assert child in first.pids()
    second = start(launch, tmp_path, "print(checkpoints.checkpoint(1, state).durable.result(60))")
    second.wait_for(r"step-00000001")
    second.wait()
    assert child in first.pids()


def test_a_killed_checkpoint_leaves_nothing_that_counts_and_is_cleared(launch: Launcher, tmp_path: Path) -> None:
    body = """
step()
checkpoints.checkpoint(0, state).durable.result()
torch.save(model.state_dict(), "expected.pt")
step()
hold()
checkpoints.checkpoint(1, state)
print("attempts", len([name for name in os.listdir("run") if name.startswith(".tmp-step-00000001")]), flush=True)
signal.pause()
"""
    first = start(launch, tmp_path, body)
    first.wait_for("attempts")
    first.kill()
    body = """
assert checkpoints.restore(state) == 1
expected = torch.load("expected.pt")
assert all(torch.equal(model.state_dict()[name], expected[name]) for name in expected)
checkpoints.checkpoint(1, state).durable.result()
print(sorted(os.listdir("run")))
"""
    second = start(launch, tmp_path, body)
    second.wait_for(r"\['\.lock', 'step-00000000', 'step-00000001'\]")
    second.wait()
