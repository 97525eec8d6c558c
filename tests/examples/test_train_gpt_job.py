"""The main job as processes: killed and resumed on four ranks, stopped by signals."""

import shutil
import signal
import textwrap
from pathlib import Path

import pytest
from launching import Launcher
from safetensors.torch import load_file
from train_story import differing_tensors, read_checkpoint, read_metrics

from gpt.config import Config
from gpt.model import GPT

SCRIPT = Path(__file__).parents[2] / "examples" / "train_gpt.py"
TINY = """--width 32 --layers 2 --heads 2 --context 32 --global-batch 16 --micro-batch 2 --eval-every 5 --eval-rows 8"""


def flags_of(tmp_path: Path, text: Path, run: str, steps: int = 21) -> list[str]:
    where = ["--run-dir", str(tmp_path / run), "--cache-dir", str(tmp_path / "cache"), "--data", str(text)]
    return [*TINY.split(), *where, "--steps", str(steps), "--keep-last", "100"]


def published_steps(run_dir: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in run_dir.glob("step-*"))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_four_ranks_killed_and_resumed_after_step_5_have_the_same_bits_at_step_20(
    launch: Launcher, tmp_path: Path, text: Path
) -> None:
    dump = tmp_path / "reference.safetensors"
    reference_flags = [*flags_of(tmp_path, text, "reference"), "--checkpoint-every", "0", "--dump-final", dump]
    launch.torchrun(SCRIPT, *reference_flags, num_ranks=4).wait(timeout_s=100)

    flags, run_dir = flags_of(tmp_path, text, "killed"), tmp_path / "killed"
    job = launch.torchrun(SCRIPT, *flags, num_ranks=4)
    job.wait_for(r"step +12/21 ", timeout_s=100)
    job.kill()
    published = published_steps(run_dir)
    assert 5 in published
    assert 20 not in published
    for step in published:  # whatever step the kill came at, the job resumes from step 5
        if step > 5:
            shutil.rmtree(run_dir / f"step-{step:08d}")
    job = launch.torchrun(SCRIPT, *flags, num_ranks=4)
    job.wait(timeout_s=100)
    assert "starts with step 6" in job.output

    expected = load_file(dump)
    assert len(expected) == 4 * len(list(GPT(Config(layers=2)).parameters()))  # itself, two moments, the step count
    assert differing_tensors(expected, read_checkpoint(run_dir / "step-00000020")) == []
    losses = {line["step"]: line["loss"] for line in read_metrics(tmp_path / "reference")}
    assert list(losses) == list(range(21))
    assert [line["loss"] for line in read_metrics(run_dir)[-15:]] == [losses[step] for step in range(6, 21)]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_sigterm_to_torchrun_stops_all_ranks_after_one_durable_step(
    launch: Launcher, tmp_path: Path, text: Path
) -> None:
    flags = flags_of(tmp_path, text, "run", steps=100_000)
    job = launch.torchrun(SCRIPT, *flags, num_ranks=2)
    job.wait_for(r"step +3/")
    job.signal(signal.SIGTERM)
    job.wait(timeout_s=60, expect=1)  # torchrun reports the signal as its own failure, whatever its workers do
    stopped_after = int(job.wait_for(r"stopped by a signal after step (\d+); run the same command again")[1])
    assert published_steps(tmp_path / "run")[-1] == stopped_after
    assert "exitcode" not in job.output

    job = launch.torchrun(SCRIPT, *flags, num_ranks=2)
    assert int(job.wait_for(r"starts with step (\d+)")[1]) == stopped_after + 1


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(
    launch: Launcher, tmp_path: Path, text: Path, free_port: int, number: int
) -> None:
    ranks = launch.ranks(SCRIPT, *flags_of(tmp_path, text, "run", steps=100_000), num_ranks=2, port=free_port)
    ranks[0].wait_for(r"step +2/")
    ranks[1].signal(number)
    for rank in ranks:
        rank.wait(timeout_s=60)
    marks = {tuple(path.read_text().split()) for path in (tmp_path / "run" / "phases").iterdir()}
    assert marks == {(str(published_steps(tmp_path / "run")[-1]), "done")}


# Buckets are faked: each rank reduces the same random gradients twice, the second time in another order.
HOOK_RANK = """
    import sys

    import torch
    import torch.distributed as dist

    sys.path.insert(0, {examples!r})
    from train_gpt import mean_in_rank_order

    class Bucket:
        def __init__(self, flat):
            self.flat = flat
        def buffer(self):
            return self.flat

    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), 10_007
    everyone = torch.randn(4, size, generator=torch.Generator().manual_seed(3)) * 10.0 ** torch.arange(4)[:, None]
    order = torch.randperm(size, generator=torch.Generator().manual_seed(4))
    expected = (((everyone[0] + everyone[1]) + everyone[2]) + everyone[3]) / 4
    plain = mean_in_rank_order(None, Bucket(everyone[rank].clone())).wait()
    shuffled = mean_in_rank_order(None, Bucket(everyone[rank][order].clone())).wait()
    assert torch.equal(plain, expected)
    assert torch.equal(shuffled, expected[order])
    assert not torch.equal(expected, (((everyone[3] + everyone[2]) + everyone[1]) + everyone[0]) / 4)
    dist.barrier()
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_gradients_are_summed_in_rank_order_wherever_they_lie(launch: Launcher, tmp_path: Path, free_port: int) -> None:
    script = tmp_path / "rank.py"
    script.write_text(textwrap.dedent(HOOK_RANK).format(examples=str(SCRIPT.parent)))
    for rank in launch.ranks(script, num_ranks=4, port=free_port):
        rank.wait(timeout_s=90)
