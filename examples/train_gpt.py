"""Train a small GPT on text, checkpoint after every step, survive anything.

    torchrun --standalone --nproc-per-node 4 examples/train_gpt.py --config examples/gpt.yaml

Run the same command again after a crash, a kill or a signal: the job goes on from its newest whole checkpoint and ends
with the same bits as a job that was never interrupted. Four things make that true, marked "exact:" below: one
intra-op thread, gradients summed in rank order, the random state and the data position in the checkpoint.

On SIGTERM or SIGUSR1 the ranks finish the step, make its checkpoint durable and exit with 0. torchrun passes SIGTERM on
to them, then reports it by an exit status of 1; for SIGUSR1 start it with --signals-to-handle SIGTERM,SIGINT,SIGUSR1.

Shapes: B = rows of a micro-batch, T = context (bytes per row), D = width.
"""

import contextlib
import dataclasses
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import datastates
from gpt.config import Config, read_config
from gpt.data import Rows, token_cache
from gpt.model import GPT, lr_fraction, make_optimizer
from gpt.process import PhaseMark, StopSignals
from gpt.reports import (
    Metrics,
    MetricsHook,
    checkpoint_metrics,
    print_progress,
    write_json_lines,
    write_tensorboard,
)

COLLECTIVE_TIMEOUT = timedelta(minutes=5)


# ---- the distributed job --------------------------------------------------------------------------------------------


def from_launcher(names: str, default: int) -> int:
    """Read a number that torchrun, srun or mpirun (in this order) has put into the environment."""
    return next((int(os.environ[name]) for name in names.split() if name in os.environ), default)


def local_rank() -> int:
    return from_launcher("LOCAL_RANK SLURM_LOCALID OMPI_COMM_WORLD_LOCAL_RANK", 0)


def join_job(backend: str) -> torch.device:
    """Join the process group that the launcher describes, or run alone without one; returns this rank's device."""
    rank = from_launcher("RANK SLURM_PROCID OMPI_COMM_WORLD_RANK", 0)
    num_ranks = from_launcher("WORLD_SIZE SLURM_NTASKS OMPI_COMM_WORLD_SIZE", 1)
    torch.set_num_threads(1)  # exact: the number of threads decides how long sums are cut into partial sums
    cuda = torch.cuda.is_available()
    if cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.cuda.set_device(local_rank())
    alone = dist.HashStore() if num_ranks == 1 else None
    backend = backend or ("nccl" if cuda else "gloo")
    dist.init_process_group(backend, store=alone, rank=rank, world_size=num_ranks, timeout=COLLECTIVE_TIMEOUT)
    return torch.device("cuda", local_rank()) if cuda else torch.device("cpu")


def mean_in_rank_order(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Average a bucket of gradients over the ranks, every element as ((g0 + g1) + g2) + ..., wherever it lies.

    exact: an all-reduce adds in an order that depends on an element's place in its bucket, and DDP lays out its buckets
    anew after the first iteration, in the order in which gradients became ready. So the first step after a resume
    would round differently from the same step of an uninterrupted job. Two ranks hide this, because a + b = b + a; four
    diverge. Here the place does not matter. It moves as many bytes as a ring: each rank gets everyone's copy of its
    share of the bucket, adds the copies up, and sends the sum to everyone. It blocks, so that all ranks issue the
    collectives of all buckets in one order.
    """
    flat, num_ranks = bucket.buffer(), dist.get_world_size()
    padded = F.pad(flat, (0, -flat.numel() % num_ranks))
    copies = torch.empty_like(padded)
    dist.all_to_all_single(copies, padded)
    total, *rest = copies.view(num_ranks, -1)
    for copy in rest:
        total += copy
    dist.all_gather(list(padded.view(num_ranks, -1)), total / num_ranks)
    future = torch.futures.Future[Tensor](devices=[flat.device] if flat.is_cuda else None)
    future.set_result(padded[: flat.numel()])
    return future


def sum_over_ranks(*values: float, device: torch.device) -> list[float]:
    """Add a few numbers up over all ranks, in float64 and in rank order. Collective."""
    mine = torch.tensor(values, dtype=torch.float64, device=device)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    return [sum(column) for column in zip(*(one.tolist() for one in everyone), strict=True)]


# ---- the loop -------------------------------------------------------------------------------------------------------


class Trainer:
    """Model, optimizer, data and everything else that a step changes: `state` is what a checkpoint holds."""

    def __init__(self, config: Config, device: torch.device, tokens: np.ndarray) -> None:
        self.config, self.device, self.rank, self.num_ranks = config, device, dist.get_rank(), dist.get_world_size()
        self.num_micro_batches = config.num_micro_batches(self.num_ranks)
        torch.manual_seed(config.seed)
        self.model = GPT(config).to(device)
        torch.manual_seed(config.seed + 1_000_003 * (1 + self.rank))  # dropout differs between the ranks
        self.ddp = DistributedDataParallel(self.model, device_ids=[device] if device.type == "cuda" else None)
        self.ddp.register_comm_hook(None, mean_in_rank_order)
        self.optimizer = make_optimizer(self.model, config)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: lr_fraction(step, config))
        self.rows = Rows(tokens, config, self.rank, self.num_ranks)
        self.stop = StopSignals()
        self.mark = PhaseMark(Path(config.run_dir) / "phases" / f"rank-{self.rank:05d}")
        self.state = {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "rng": datastates.rng_state(),  # exact: dropout goes on where it was
            "data": self.rows,
        }

    def step(self, step: int) -> Metrics:
        """Take one optimizer step; returns this rank's loss, the gradient's norm and the learning rate."""
        loss, last = 0.0, self.num_micro_batches - 1
        for micro, rows in enumerate(self.rows.next_step()):
            with contextlib.nullcontext() if micro == last else self.ddp.no_sync():
                self.mark(step, "forward")
                micro_loss = self.ddp(*self._to_device(rows)) / (last + 1)
                self.mark(step, "backward")
                micro_loss.backward()
            loss += micro_loss.item()
        self.mark(step, "update")
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        learning_rate = float(self.scheduler.get_last_lr()[0])
        self.optimizer.step()  # waits, by itself, until the checkpoint under way has copied what this overwrites
        self.scheduler.step()
        self.optimizer.zero_grad()
        return {"loss": loss, "grad_norm": norm.item(), "learning_rate": learning_rate}

    @torch.no_grad()
    def evaluate(self) -> float:
        """Return the loss on the held-out text, in nats per byte. Collective."""
        self.model.eval()
        loss = sum(self.model(*self._to_device(row)).item() for row in self.rows.evaluation())
        self.model.train()
        return sum_over_ranks(loss, device=self.device)[0] / self.config.eval_rows

    def dump(self, path: Path) -> None:
        """Save parameters and moments with plain safetensors, for comparisons that use nothing of datastates."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            tensors |= {
                f"optimizer.state.{name}.{key}": value for key, value in self.optimizer.state[parameter].items()
            }
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path)

    def _to_device(self, rows: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return rows[0].to(self.device), rows[1].to(self.device)


def run_steps(
    trainer: Trainer, start: int, checkpoints: datastates.Checkpointer | None, hooks: list[MetricsHook]
) -> int:
    """Train, checkpoint and report step by step, the last one durably; returns how many steps the job has done."""
    config = trainer.config
    for step in range(start, config.steps):
        began, before = time.perf_counter(), checkpoints.stats() if checkpoints else None
        metrics = trainer.step(step)
        # One tiny collective for two things: the loss, and whether any rank was asked to stop. A signal reaches the
        # ranks at different moments, even in different steps; the sum is the same on all of them, so all stop here.
        loss_sum, num_asked = sum_over_ranks(metrics["loss"], trainer.stop.received, device=trainer.device)
        metrics["loss"] = loss_sum / trainer.num_ranks
        last = num_asked > 0 or step + 1 == config.steps
        trainer.mark(step, "checkpoint")
        if checkpoints and before and (last or (step + 1) % config.checkpoint_every == 0):
            handle = checkpoints.checkpoint(step, trainer.state, metadata=dataclasses.asdict(config))
            metrics |= checkpoint_metrics(step, before, checkpoints.stats())
        metrics["step_s"] = time.perf_counter() - began
        metrics["tokens_per_s"] = config.global_batch * config.context / metrics["step_s"]
        if config.eval_every and (step + 1) % config.eval_every == 0:
            metrics["eval_loss"] = trainer.evaluate()
        for on_metrics in hooks:
            on_metrics(step, metrics)
        trainer.mark(step, "done")
        if last:
            if checkpoints:
                say(f"durable: {handle.durable.result()}")
            return step + 1
    return start


def train(config: Config, device: torch.device) -> None:
    """Run the job from where it is to its last step, or until a signal asks it to stop."""
    if local_rank() == 0:
        token_cache(config)
    dist.barrier()  # one rank per machine writes the cache, the others read it
    trainer = Trainer(config, device, np.load(token_cache(config), mmap_mode="r"))
    num_parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    checkpoints, start = None, 0
    with contextlib.ExitStack() as resources:
        if config.checkpoint_every:
            checkpoints = datastates.Checkpointer(config.run_dir, keep_last=config.keep_last)
            start = resources.enter_context(checkpoints).restore(trainer.state)
        say(f"{num_parameters:,} parameters, {len(trainer.rows.tokens):,} bytes of text; starts with step {start}")
        hooks = (write_json_lines, write_tensorboard, print_progress) if trainer.rank == 0 else ()
        num_done = run_steps(trainer, start, checkpoints, [make(config, start) for make in hooks])
    if num_done < config.steps:
        say(f"stopped by a signal after step {num_done - 1}; run the same command again to go on with step {num_done}")
    elif config.dump_final and trainer.rank == 0:
        trainer.dump(Path(config.dump_final))


def say(text: str) -> None:
    if dist.get_rank() == 0:
        print(text, flush=True)


if __name__ == "__main__":
    settings = read_config(__doc__)
    if settings.backend == "elastic":
        from gpt import elastic

        elastic.train(settings)
    else:
        train(settings, join_job(settings.backend))
    dist.destroy_process_group()
    # All is closed and on storage. torch's threads may still come back for the interpreter while it goes down, which
    # aborts the process ("terminate called without an active exception"): do not go down.
    sys.stdout.flush()
    os._exit(0)
