"""The story's evidence must be able to fail; and the story itself, with a tiny model."""

import json
from pathlib import Path

import pytest
import torch
from launching import Launcher
from safetensors.torch import save_file
from train_story import assemble, descendants, differing_losses, differing_tensors, read_checkpoint

STORY = Path(__file__).parents[2] / "examples" / "train_story.py"


def test_boxes_of_several_files_become_one_tensor(tmp_path: Path) -> None:
    whole = torch.randn(6, 4)
    for rank, (first, last) in enumerate([(0, 2), (2, 6)]):
        info = json.dumps({"w": {"saved_offsets": [first, 0]}, f"s{rank}": {"saved_offsets": []}})
        tensors = {"w": whole[first:last].clone(), f"s{rank}": torch.tensor(float(rank))}
        save_file(tensors, tmp_path / f"rank-{rank:05d}.safetensors", metadata={"DCP_SHARDING_INFO": info})
    got = read_checkpoint(tmp_path)
    assert differing_tensors({"w": whole, "s0": torch.tensor(0.0), "s1": torch.tensor(1.0)}, got) == []


def test_a_hole_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"w: boxes of \[\(2, 4\), \(1, 4\)\] do not fill \(4, 4\)"):
        assemble("w", [([0, 0], torch.zeros(2, 4)), ([3, 0], torch.zeros(1, 4))])


def test_one_flipped_bit_is_found() -> None:
    expected = {"same": torch.ones(3), "flipped": torch.ones(3), "minus_zero": torch.zeros(1), "missing": torch.ones(1)}
    flipped = torch.ones(3)
    flipped.view(torch.uint8)[5] ^= 1
    got = {"same": torch.ones(3), "flipped": flipped, "minus_zero": -torch.zeros(1), "more": torch.ones(1)}
    assert differing_tensors(expected, got) == ["flipped", "minus_zero", "missing"]


def test_a_loss_that_differs_or_is_missing_is_found() -> None:
    expected = [{"step": 0, "loss": 0.1}, {"step": 1, "loss": 0.2, "eval_loss": 0.5}, {"step": 2, "loss": 0.3}]
    assert differing_losses(expected, [*expected[:2], *expected[1:]]) == []
    got = [expected[0], {"step": 1, "loss": 0.2}, {"step": 1, "loss": 0.2 + 2**-55, "eval_loss": 0.5}]
    assert differing_losses(expected, got) == [
        "step 2 is missing",
        "step 1: eval_loss None, expected 0.5",
        "step 1: loss 0.20000000000000004, expected 0.2",
    ]


def test_grandchildren_in_other_sessions_are_found(launch: Launcher) -> None:
    program = (
        "import subprocess as s, sys; print(s.Popen(['sleep', '60'], start_new_session=True).pid, flush=True); input()"
    )
    parent = launch(["sh", "-c", f'sleep 60 | python3 -c "{program}"'])
    grandchild = int(parent.wait_for(r"^(\d+)$")[1])
    assert grandchild in descendants(parent.pid)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_story_holds_with_a_tiny_model(launch: Launcher, tmp_path: Path) -> None:
    model = "--width 64 --layers 2 --heads 2 --context 64 --global-batch 16 --micro-batch 2"
    job = "--steps 12 --eval-every 4 --eval-rows 8 --kill-step 7"
    story = launch.python(STORY, "--directory", tmp_path, "--data", STORY, *model.split(), *job.split())
    story.wait(timeout_s=280)
    assert "The resumed job is the uninterrupted one, bit for bit." in story.output
    assert story.output.count("  ok    ") == 5
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
