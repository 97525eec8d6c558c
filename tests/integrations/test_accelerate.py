"""accelerate: what Accelerator.prepare returns goes into the state as it is."""

import json
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from launching import Launcher
from training import assert_same_bits

import datastates

import _elastates

JOB = Path(__file__).with_name("accelerate_job.py")


@pytest.fixture(autouse=True)
def no_state_outlives_its_test() -> Iterator[None]:
    yield
    _elastates.clear_fault()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_prepared_objects_resume_bit_for_bit(tmp_path: Path) -> None:
    whole, resumed = runpy.run_path(str(JOB))["whole_and_resumed"](tmp_path)
    for name, value in whole.model.state_dict().items():
        assert_same_bits(resumed.model.state_dict()[name], value, name)
    assert resumed.scheduler.get_last_lr() == whole.scheduler.get_last_lr()


def test_two_processes_resume_bit_for_bit(launch: Launcher, tmp_path: Path, free_port: int) -> None:
    """The model is wrapped in DistributedDataParallel then; each process has batch statistics of its own."""
    env = {"GLOO_SOCKET_IFNAME": "lo", "RES_OPTIONS": "timeout:1 attempts:1"}
    for rank in launch.ranks(JOB, tmp_path / "run", num_ranks=2, port=free_port, env=env):
        found = {name: json.loads(rank.wait_for(rf"^RESULT {name} (.*)$")[1]) for name in ("processes", "different")}
        assert found == {"processes": 2, "different": []}
        resumed, whole = json.loads(rank.wait_for(r"^RESULT rates (.*)$")[1])
        assert resumed == whole
        rank.wait()
    manifest = datastates.open_checkpoint(tmp_path / "run").manifest
    assert manifest.num_ranks == 2
    assert "model.0.weight" in manifest.tensors


def test_the_gate_knows_the_optimizer_inside_the_wrapper(tmp_path: Path) -> None:
    """torch's hook names the optimizer that steps, which is not the one in the state."""
    model = torch.nn.Linear(1000, 1000)
    optimizer = Accelerator(cpu=True).prepare(torch.optim.AdamW(model.parameters()))
    model(torch.ones(1, 1000)).sum().backward()
    optimizer.step()
    with datastates.Checkpointer(tmp_path, arena_mb=1, chunk_bytes=65536) as checkpoints:
        _elastates.set_fault("write", times=2**31 - 1, hold=True)
        taken = checkpoints.checkpoint(0, {"optimizer": optimizer})
        assert taken.groups_written_by(optimizer.optimizer) == {1}
        _elastates.clear_fault()
        optimizer.step()
        assert taken.durable.result(60).name == "step-00000000"
