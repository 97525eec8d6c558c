"""A Lightning Trainer continues from our checkpoints bit for bit."""

import runpy
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import Launcher
from training import assert_same_bits

import datastates

JOB = Path(__file__).with_name("lightning_job.py")


@pytest.fixture(scope="module")
def job() -> Iterator[dict[str, Any]]:
    """Its names; here as there on one thread, because sums depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield runpy.run_path(str(JOB))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Six steps that nobody interrupted."""
    return job["fit"](tmp_path_factory.mktemp("whole"))


def assert_same(found: Any, expected: Any) -> None:
    (model, trainer), (other, whole) = found, expected
    assert model.seen == other.seen
    assert len(model.seen) == 6
    for name, value in other.state_dict().items():
        assert_same_bits(model.state_dict()[name], value, name)
    for state, wanted in zip(trainer.optimizers[0].state.values(), whole.optimizers[0].state.values(), strict=True):
        assert_same_bits(state["exp_avg_sq"], wanted["exp_avg_sq"])
    assert trainer.optimizers[0].param_groups[0]["lr"] == whole.optimizers[0].param_groups[0]["lr"]
    assert (trainer.global_step, trainer.current_epoch) == (whole.global_step, whole.current_epoch)


def test_killed_and_resumed_is_as_uninterrupted(
    launch: Launcher, tmp_path: Path, job: dict[str, Any], whole: Any
) -> None:
    launch.python(JOB, tmp_path).wait(expect=-signal.SIGKILL)
    reader = datastates.open_checkpoint(tmp_path / "checkpoints")
    assert reader.manifest.step == 2
    assert len(reader.python(0, allow_pickle=True)["lightning"]["seen"]) == 3
    assert_same(job["fit"](tmp_path), whole)


@pytest.mark.parametrize("stop", [4, 5])
def test_interrupted_at_and_after_the_end_of_an_epoch(
    tmp_path: Path, job: dict[str, Any], whole: Any, stop: int
) -> None:
    with pytest.raises(ValueError, match="stopped"):
        job["fit"](tmp_path, stop=stop, every=2)
    assert_same(job["fit"](tmp_path, every=2), whole)


def test_damaged_newest_is_passed_over(tmp_path: Path, job: dict[str, Any], whole: Any) -> None:
    with pytest.raises(ValueError, match="stopped"):
        job["fit"](tmp_path, stop=3)
    file = tmp_path / "checkpoints/step-00000002/rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert_same(job["fit"](tmp_path), whole)


def test_interval_must_be_positive(tmp_path: Path, job: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="every_n_steps is 0"):
        job["CheckpointCallback"](tmp_path, every_n_steps=0)
