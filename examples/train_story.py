"""The whole story in a few minutes on two cores: train, be killed inside a step, resume, end with the same bits.

    python examples/train_story.py            (or: make train)

1. A reference job on four processes, never interrupted, without checkpoints; datastates has no part in it.
2. The same job with a checkpoint after every step. When all ranks are inside the backward pass of a step, its workers
   and its torchrun agent get SIGKILL.
3. The killed job, started again with the same command.

Succeeds only if the kill hit the inside of a step, the third job went on from a checkpoint, and every loss and every
bit of the parameters and moments agree with the reference. The last checkpoint is read with plain safetensors, not with
datastates. Flags that are not listed below go to train_gpt.py, for instance --steps 100.
"""

import argparse
import contextlib
import json
import math
import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).resolve().parent
JOB_TIMEOUT_S = 900
WARM_UP_STEPS = 5
"""Steps after each start that are left out of the speeds: caches, allocator, DDP's second bucket layout."""

Line = dict[str, Any]  # one line of metrics.jsonl


# ---- jobs: start, watch, kill ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Job:
    """A torchrun agent with its workers, and the directory they write into."""

    agent: subprocess.Popen[bytes]
    run_dir: Path
    num_ranks: int

    def wait(self) -> None:
        status = self.agent.wait(timeout=JOB_TIMEOUT_S)
        if status != 0:
            raise SystemExit(f"the job in {self.run_dir} failed with status {status}, see above")

    def marks(self) -> list[tuple[int, str]]:
        """Return for every rank the step and the phase in which it is, or was when it died."""
        texts = [path.read_text().split() for path in sorted((self.run_dir / "phases").glob("rank-*"))]
        return [(int(text[0]), text[1]) for text in texts if text]

    def kill_inside_step(self, earliest: int) -> int:
        """SIGKILL the agent and all workers while every rank is in a backward pass of one step; returns how many.

        The step is ``earliest``, or a later one if the ranks were seen too late. Blocks until all of them are dead.
        """
        self._wait_until(lambda: len(self.marks()) == self.num_ranks)
        with pidfds([self.agent.pid, *descendants(self.agent.pid)]) as handles:  # now: a small step is over in no time
            self._wait_until(lambda: self._all_in_backward(earliest))
            kill(handles)
        self.agent.wait()
        return len(handles)

    def _all_in_backward(self, earliest: int) -> bool:
        (step, phase), *others = self.marks()
        return step >= earliest and phase == "backward" and all(other == (step, phase) for other in others)

    def _wait_until(self, holds: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + JOB_TIMEOUT_S
        with pidfds([self.agent.pid]) as agent:
            while not holds():
                if wait_for_death(agent, timeout_s=0.001) or time.monotonic() > deadline_s:
                    raise SystemExit(f"the job in {self.run_dir} ended or hung before it could be killed, see above")


@contextlib.contextmanager
def start_job(run_dir: Path, num_ranks: int, flags: list[str]) -> Iterator[Job]:
    """Start train_gpt.py under torchrun, on a port the system picks; nothing of it lives on afterwards."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    command = [*torchrun, str(HERE / "train_gpt.py"), "--run-dir", str(run_dir), *flags]
    with subprocess.Popen(command, env={"OMP_NUM_THREADS": "1", **os.environ}) as agent:
        try:
            yield Job(agent=agent, run_dir=run_dir, num_ranks=num_ranks)
        finally:
            kill_tree(agent)


def kill_tree(agent: subprocess.Popen[bytes]) -> None:
    """SIGKILL a child process and all its descendants and wait until they are dead; they may be dead already."""
    if agent.poll() is None:
        with pidfds([agent.pid, *descendants(agent.pid)]) as handles:
            kill(handles)
        agent.wait()


def kill(handles: list[int]) -> None:
    """SIGKILL processes in the given order and wait until all of them are dead."""
    for handle in handles:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    for handle in handles:
        if not wait_for_death([handle], timeout_s=30):
            raise SystemExit("a process outlived SIGKILL by 30 s")


def descendants(pid: int) -> list[int]:
    """Return the children of a process, their children and so on; torchrun's are in sessions of their own."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it may end while we look
            if entry.name.isdigit():
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for ancestor in found:
        found += children.get(ancestor, [])
    return found[1:]


@contextlib.contextmanager
def pidfds(pids: list[int]) -> Iterator[list[int]]:
    """Open a handle for every process that still is there: unlike its number, it never comes to mean another one."""
    with contextlib.ExitStack() as stack:
        handles = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                handles.append(os.pidfd_open(pid))
                stack.callback(os.close, handles[-1])
        yield handles


def wait_for_death(handles: list[int], timeout_s: float) -> list[int]:
    """Return the handles of ended processes, as soon as there is one, or none after the timeout."""
    poll = select.poll()
    for handle in handles:
        poll.register(handle, select.POLLIN)
    return [handle for handle, _ in poll.poll(timeout_s * 1e3)]


# ---- evidence -------------------------------------------------------------------------------------------------------


def read_metrics(run_dir: Path) -> list[Line]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def read_checkpoint(directory: Path) -> dict[str, Tensor]:
    """Put a checkpoint together from its data files alone: plain safetensors with the offset of every box."""
    boxes: dict[str, list[tuple[list[int], Tensor]]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            offsets = json.loads(file.metadata()["DCP_SHARDING_INFO"])
            for name in file.keys():  # noqa: SIM118 (a file is no mapping)
                boxes.setdefault(name, []).append((offsets[name]["saved_offsets"], file.get_tensor(name)))
    return {name: assemble(name, parts) for name, parts in boxes.items()}


def assemble(name: str, parts: list[tuple[list[int], Tensor]]) -> Tensor:
    """Join boxes, each with its offset in every dim, into the tensor that they must fill."""
    ends = [[offset + size for offset, size in zip(offsets, box.shape, strict=True)] for offsets, box in parts]
    whole = torch.empty([max(dim) for dim in zip(*ends, strict=True)], dtype=parts[0][1].dtype)
    for (offsets, box), end in zip(parts, ends, strict=True):
        whole[tuple(slice(first, last) for first, last in zip(offsets, end, strict=True))] = box
    if sum(box.numel() for _, box in parts) != whole.numel():
        raise SystemExit(f"{name}: boxes of {[tuple(box.shape) for _, box in parts]} do not fill {tuple(whole.shape)}")
    return whole


def differing_tensors(expected: dict[str, Tensor], got: dict[str, Tensor]) -> list[str]:
    """Return the names of tensors that are missing or differ in any bit; what else the checkpoint holds is its own."""

    def same(name: str) -> bool:
        a, b = expected[name], got.get(name)
        return (
            b is not None and a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
        )

    return [name for name in expected if not same(name)]


def differing_losses(expected: list[Line], got: list[Line]) -> list[str]:
    """Return where losses are not exactly equal; a step that was done twice must be right both times."""
    reference = {line["step"]: line for line in expected}
    missing = [f"step {step} is missing" for step in reference if step not in {line["step"] for line in got}]
    return missing + [
        f"step {line['step']}: {name} {line.get(name)!r}, expected {reference[line['step']].get(name)!r}"
        for line in got
        for name in ("loss", "eval_loss")
        if line.get(name) != reference[line["step"]].get(name)
    ]


# ---- report ---------------------------------------------------------------------------------------------------------


def speed_lines(lines: list[Line]) -> list[Line]:
    """Return the steps that count for speeds: without the first ones after each start, and without the last."""
    return [line for line in lines[:-1] if line["step"] - line["start"] >= WARM_UP_STEPS] or lines


def median(lines: list[Line], name: str) -> float:
    values = [line[name] for line in lines if name in line]
    return statistics.median(values) if values else math.nan


def table(reference: list[Line], killed: list[Line], checkpoint_bytes: int) -> str:
    """Return what checkpoints cost, as text; medians over steps."""
    without, with_ = speed_lines(reference), speed_lines(killed)
    stalls_ms = sorted(line["checkpoint_stall_ms"] for line in with_)
    rows = [
        ("steps", f"{len(reference)} without checkpoints, {len(killed)} with (killed and resumed)"),
        ("tokens/s without checkpoints", f"{median(without, 'tokens_per_s'):,.0f}"),
        ("tokens/s with one per step", f"{median(with_, 'tokens_per_s'):,.0f}"),
        ("step without checkpoints", f"{median(without, 'step_s') * 1e3:.1f} ms"),
        ("step with one per step", f"{median(with_, 'step_s') * 1e3:.1f} ms"),
        ("stall per checkpoint", f"{statistics.median(stalls_ms):.1f} ms median, {stalls_ms[-1]:.1f} ms longest"),
        ("durable lag", f"{median(with_, 'durable_lag_steps'):.0f} steps"),
        ("durable speed", f"{median(with_, 'durable_mb_s'):,.0f} MB/s"),
        ("bytes per checkpoint", f"{checkpoint_bytes:,}"),
        ("loss", f"{reference[0]['loss']:.3f} at first, {reference[-1]['loss']:.3f} at last (nats per byte)"),
    ]
    return "\n".join(f"  {name:<30}{value}" for name, value in rows)


def plot(path: Path, reference: list[Line], before: list[Line], after: list[Line], kill_step: int) -> None:
    """Draw both loss curves into one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    curves: list[tuple[list[Line], str, dict[str, Any]]] = [
        (reference, "never interrupted", {"color": "0.75", "linewidth": 7}),
        (before, f"until SIGKILL inside step {kill_step}", {"color": "tab:red", "linewidth": 2}),
        (after, f"resumed at step {after[0]['step']}", {"color": "tab:blue", "linewidth": 2}),
    ]
    for lines, label, style in curves:
        axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], label=label, **style)
    axes.axvline(kill_step, color="tab:red", linestyle=":", linewidth=1)
    axes.set(
        xlabel="step", ylabel="training loss, nats per byte", title="One job, killed and resumed, and one that was not"
    )
    axes.legend()
    figure.savefig(path, dpi=120)


# ---- the story ------------------------------------------------------------------------------------------------------


def tell(directory: Path, num_ranks: int, kill_step: int, flags: list[str]) -> bool:
    """Run the three jobs and return whether everything that must hold does."""
    reference_dir, killed_dir, dump = directory / "reference", directory / "killed", directory / "reference.safetensors"
    for old in (reference_dir, killed_dir):
        shutil.rmtree(old, ignore_errors=True)
    flags = ["--cache-dir", str(directory / "data"), *flags]

    say(f"1. A reference job on {num_ranks} processes, without checkpoints and never interrupted")
    with start_job(reference_dir, num_ranks, [*flags, "--checkpoint-every", "0", "--dump-final", str(dump)]) as job:
        job.wait()

    say(f"2. The same job with a checkpoint after every step; SIGKILL for all of it inside step {kill_step}")
    with start_job(killed_dir, num_ranks, flags) as job:
        num_killed = job.kill_inside_step(kill_step)
        marks = job.marks()
    before = read_metrics(killed_dir)
    published = sorted(int(path.name.removeprefix("step-")) for path in killed_dir.glob("step-*"))
    say(f"   killed {num_killed} processes; ranks were at {marks}; checkpoints on disk: {published}")

    say("3. The killed job again, with the same command")
    with start_job(killed_dir, num_ranks, flags) as job:
        job.wait()
    reference, killed = read_metrics(reference_dir), read_metrics(killed_dir)
    after = killed[len(before) :]
    killed_at = marks[0][0]

    last_step = reference[-1]["step"]
    checkpoint = killed_dir / f"step-{last_step:08d}"
    expected, got = load_file(dump), read_checkpoint(checkpoint)
    wrong_losses, wrong_tensors = differing_losses(reference, killed), differing_tensors(expected, got)
    plot(directory / "loss.png", reference, before, after, killed_at)

    inside = all(step == killed_at and phase in ("forward", "backward", "update") for step, phase in marks)
    start = after[0]["start"]
    bits = 8 * sum(tensor.nbytes for tensor in expected.values())
    checks = [
        (f"killed inside step {killed_at}", inside and before[-1]["step"] + 1 == killed_at >= kill_step),
        (f"agent and workers killed: {num_killed} processes", num_killed > num_ranks),
        (f"resumed at step {start}, from a checkpoint", 0 < start <= killed_at and published[-1] + 1 == start),
        (f"all {len(killed)} losses equal: {wrong_losses[:3] or 'yes'}", not wrong_losses),
        (f"all {bits:,} bits of {len(expected)} tensors equal: {wrong_tensors[:3] or 'yes'}", not wrong_tensors),
    ]
    say("What checkpoints cost (medians over steps)")
    print(table(reference, killed, sum(path.stat().st_size for path in checkpoint.iterdir())))
    say("What must hold")
    for text, holds in checks:
        print(f"  {'ok   ' if holds else 'FALSE'} {text}")
    return all(holds for _, holds in checks)


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--directory", type=Path, default=Path("runs/story"), help="where everything is written (%(default)s)"
    )
    parser.add_argument("--ranks", type=int, default=4, help="processes per job (%(default)s)")
    kill_help = "step inside which the second job is killed (%(default)s), or the next one in which that succeeds"
    parser.add_argument("--kill-step", type=int, default=25, help=kill_help)
    parser.add_argument("--config", default=str(HERE / "gpt.yaml"), help="settings of the jobs (%(default)s)")
    own, passed_on = parser.parse_known_args()
    began = time.monotonic()
    succeeded = tell(own.directory, own.ranks, own.kill_step, ["--config", own.config, *passed_on])
    say(f"{'The resumed job is the uninterrupted one, bit for bit.' if succeeded else 'FAILED.'}")
    print(f"{time.monotonic() - began:.0f} s in all; both loss curves are in {own.directory / 'loss.png'}")
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
