"""Clocks that jump: which checkpoint is the newest is a matter of steps, never of times."""

import os
import time
from pathlib import Path

import pytest
import torch

from datastates import Checkpointer, open_checkpoint

CLOCKS = {
    "backwards": [4e9, 3e9, 2e9, 1e9],
    "stands still": [1e9] * 4,
    "far ahead, then back": [1e9, 9e9, 1.1e9, 1.2e9],
    "before 1970": [1e9, -5.0, 0.0, -1e9],
}


def state(step: int) -> dict[str, torch.Tensor]:
    return {"values": torch.full((100,), float(step))}


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
def test_the_newest_is_the_highest_step_whatever_the_clock_says(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Checkpointer(tmp_path, keep_last=3) as checkpoints:
        for step, now_s in enumerate(clock):
            monkeypatch.setattr(time, "time", lambda now_s=now_s: now_s)
            checkpoints.checkpoint(step, state(step)).durable.result(60)
    for age, path in enumerate(sorted(tmp_path.glob("step-*"), reverse=True)):
        os.utime(path, (1e6 * age, 1e6 * age))  # the newest is the oldest of all, to the file system
    fresh = state(-1)
    with Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]
        assert checkpoints.latest() == tmp_path / "step-00000003"
        assert checkpoints.restore(fresh) == 4
    assert fresh["values"].tolist() == [3.0] * 100
    assert open_checkpoint(tmp_path).manifest.created_unix_s == clock[3]
