"""The Hugging Face Trainer continues from our checkpoints bit for bit."""

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

JOB = Path(__file__).with_name("trainer_job.py")


@pytest.fixture(scope="module")
def job() -> Iterator[dict[str, Any]]:
    """Its names; here as there on one thread, because sums depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield runpy.run_path(str(JOB))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Six steps that nobody interrupted."""
    return outcome(job, tmp_path_factory.mktemp("whole"))


def outcome(job: dict[str, Any], directory: Path, **options: Any) -> dict[str, Any]:
    trainer, checkpoints = job["make"](directory, **options)
    checkpoints.resume(trainer)
    state = trainer.optimizer.optimizer.state
    moments = {f"{i}.{key}": item for i, items in enumerate(state.values()) for key, item in items.items()}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {**trainer.model.state_dict(), **moments, "losses": losses, "lr": trainer.lr_scheduler.get_last_lr()}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert_same_bits(found[name], value, name)
    assert found["lr"] == expected["lr"]
    assert found["losses"][-1] == expected["losses"][-1]


def test_killed_and_resumed_is_as_uninterrupted(
    launch: Launcher, tmp_path: Path, job: dict[str, Any], whole: dict[str, Any]
) -> None:
    launch.python(JOB, tmp_path).wait(expect=-signal.SIGKILL)
    reader = datastates.open_checkpoint(tmp_path / "checkpoints")
    assert reader.manifest.step == 2
    assert reader.python(0)["trainer"]["global_step"] == 3
    assert_same(outcome(job, tmp_path), whole)
    published = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert published == [f"step-{step:08d}" for step in (3, 4, 5)]


@pytest.mark.parametrize("stop", [4, 5])
def test_interrupted_at_and_after_the_end_of_an_epoch(
    tmp_path: Path, job: dict[str, Any], whole: dict[str, Any], stop: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        outcome(job, tmp_path, stop=stop, every=2)
    assert_same(outcome(job, tmp_path, every=2), whole)


@pytest.mark.parametrize("file", ["rank-00000.safetensors", "rank-00000.objects.json"])
def test_damaged_newest_is_passed_over(tmp_path: Path, job: dict[str, Any], whole: dict[str, Any], file: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        outcome(job, tmp_path, stop=3)
    file = tmp_path / "checkpoints/step-00000002" / file
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert_same(outcome(job, tmp_path), whole)


def test_what_the_callback_refuses(tmp_path: Path, job: dict[str, Any]) -> None:
    trainer, _ = job["make"](tmp_path)
    with pytest.raises(ValueError, match="not one of the trainer's"):
        job["CheckpointCallback"](tmp_path).resume(trainer)
    with pytest.raises(ValueError, match="every_n_steps is 0"):
        job["CheckpointCallback"](tmp_path, every_n_steps=0)
