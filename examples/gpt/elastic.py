"""The job on an elastic group: ranks may die, rank 0 among them, and the others go on with the step they were in.

Every rank holds the whole state. A step consists of slots, its micro-batches, which are dealt to whoever lives; every
random draw is a function of (seed, step, slot); gradients are summed over all slots and divided once by their number.
So the global batch stays what it is, and a step that was interrupted is done again by the survivors from unchanged
parameters. Not bit for bit the same as without the death: sums are taken in another order.

One question has to be answered after a death: has anybody applied the step, perhaps the dead one? A rank applies it
only when it knows that all have the sums. So where all who live have them the step counts, and everybody applies it;
where somebody has not, nobody has applied it, and it is done again.
"""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

import datastates
import elaswave
from elaswave import timeline
from gpt.config import Config
from gpt.data import Rows, token_cache
from gpt.model import GPT, lr_fraction, make_optimizer
from gpt.process import PhaseMark, StopSignals
from gpt.reports import Metrics, MetricsHook, checkpoint_metrics, print_progress, write_json_lines, write_tensorboard


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a rank tells the others when they agree on how to go on."""

    committed: int
    """last step whose update it has applied"""
    summed: int
    """last step of which it holds the sums over all slots"""
    evaluated: int
    """last step after which it has evaluated the model"""
    has_state: bool
    """false for one who has joined and was not given the state yet"""

    def dump(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def load(cls, raw: bytes) -> "Progress":
        return cls(**json.loads(raw))


class ElasticTrainer:
    """Replicated state, and steps that are done by all who live or not at all."""

    def __init__(self, config: Config, run: elaswave.Run, tokens: np.ndarray) -> None:
        self.config, self.run = config, run
        torch.manual_seed(config.seed)
        self.model = GPT(config)
        self.optimizer = make_optimizer(self.model, config)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: lr_fraction(step, config))
        self.rows = Rows(tokens, config, run.rank, run.num_ranks)
        self.stop = StopSignals()
        self.progress = Progress(committed=-1, summed=-1, evaluated=-1, has_state=run.view is None)
        self.newcomers = 0.0
        self.parameters = list(self.model.parameters())
        num_elements = sum(parameter.numel() for parameter in self.parameters)
        # Gradients and loss; how many were asked to stop, and how many know of newcomers.
        self.sums = torch.zeros(num_elements + 3)
        self.state: dict[str, Any] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "data": self.rows,
        }

    # ---- a step

    def step(self) -> Metrics:
        """Do the step behind the last committed one; returns the loss, the gradient's norm and the learning rate."""
        step = self.progress.committed + 1
        self.run.progress(step, "begin")
        self.sums = self._sums_of_my_slots(step)
        with timeline.phase("all-reduce"):
            dist.all_reduce(self.sums)
        self.progress = dataclasses.replace(self.progress, summed=step)
        with timeline.phase("commit"):
            dist.barrier()  # who comes through knows that all have the sums
        return self._apply()

    def _sums_of_my_slots(self, step: int) -> Tensor:
        """This rank's part of the step: its slots' gradients and losses, added up, [number of elements + 3]."""
        self.rows.rows_served = step * self.config.global_batch
        self.optimizer.zero_grad()
        loss = 0.0
        for slot, (inputs, targets) in zip(self.rows.slots(), self.rows.next_step(), strict=True):
            torch.manual_seed(seed_of(self.config.seed, step, slot))
            slot_loss = self.model(inputs, targets)
            slot_loss.backward()
            loss += slot_loss.item()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        told = torch.tensor([loss, self.stop.received, self.run.group.waiting > 0])
        return torch.cat([*(gradient.flatten() for gradient in gradients), told])

    def _apply(self) -> Metrics:
        """Take the update whose sums are here."""
        begin, num_slots = 0, self.config.num_slots
        for parameter in self.parameters:
            end = begin + parameter.numel()
            parameter.grad = (self.sums[begin:end] / num_slots).view_as(parameter)
            begin = end
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        learning_rate = float(self.scheduler.get_last_lr()[0])
        self.optimizer.step()  # waits, by itself, until the checkpoint under way has copied what this overwrites
        self.scheduler.step()
        step = self.progress.summed
        self.progress = dataclasses.replace(self.progress, committed=step)
        self.rows.rows_served = (step + 1) * self.config.global_batch
        self.run.progress(step, "commit")
        timeline.note("committed", step=step, rank=self.run.rank)
        loss, asked, self.newcomers = self.sums[-3:].tolist()
        return {"loss": loss / num_slots, "grad_norm": norm.item(), "learning_rate": learning_rate, "asked": asked}

    # ---- deaths and newcomers

    def recover(self) -> Metrics | None:
        """Go on without the dead and with who has come; returns what the step gave if it turned out to be committed."""
        view = self.run.recover(self.progress.dump())
        told = [Progress.load(payload) for payload in view.payloads if payload]
        caught_up = None
        if self.progress.has_state and min(one.summed for one in told if one.has_state) > self.progress.committed:
            caught_up = self._apply()
        self.progress = dataclasses.replace(
            self.progress, summed=self.progress.committed, evaluated=max(one.evaluated for one in told)
        )
        self.follow(view)
        return caught_up

    def follow(self, view: elaswave.View) -> None:
        """Take this rank's share in a new view; give newcomers the state. Collective."""
        self.rows.rank, self.rows.num_ranks = self.run.rank, self.run.num_ranks
        has_state = [bool(payload) and Progress.load(payload).has_state for payload in view.payloads]
        if not all(has_state):
            self.share(has_state.index(True))

    def share(self, source: int) -> None:
        """Everybody gets the state of rank ``source``. Collective."""
        mine = {"progress": self.progress, **{name: part.state_dict() for name, part in self.state.items()}}
        box = [mine if self.run.rank == source else None]
        dist.broadcast_object_list(box, src=source)
        if self.run.rank != source:
            (got,) = box
            assert got is not None
            self.progress = got["progress"]
            self.sums = torch.zeros_like(self.sums)
            for name, part in self.state.items():
                part.load_state_dict(got[name])

    # ---- evaluation

    @property
    def evaluation_is_due(self) -> bool:
        """The same on all ranks, newcomers included: it follows from their progress."""
        every, done = self.config.eval_every, self.progress.committed + 1
        return every > 0 and done > 0 and done % every == 0 and self.progress.evaluated < self.progress.committed

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        """The loss on the held-out text, in nats per byte. Collective."""
        self.model.eval()
        with contextlib.ExitStack() as stack:
            stack.callback(self.model.train)
            stack.enter_context(self.run.paused("evaluation"))
            loss = torch.tensor(sum(self.model(*row).item() for row in self.rows.evaluation()))
            dist.all_reduce(loss)
        self.progress = dataclasses.replace(self.progress, evaluated=self.progress.committed)
        return {"eval_loss": loss.item() / self.config.eval_rows}


def seed_of(*key: int) -> int:
    """A seed for the random draws of (seed, step, slot)."""
    return int.from_bytes(hashlib.blake2b(str(key).encode(), digest_size=7).digest(), "little")


class Keeper:
    """Rank 0's duties, whoever that is now: checkpoints and reports. Everything that is kept, all ranks hold."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.checkpoints: datastates.Checkpointer | None = None
        self.hooks: list[MetricsHook] = []
        self._last: datastates.Checkpoint | None = None
        self._marked = time.perf_counter()

    def take_office(self, start: int) -> None:
        """This rank is rank 0 from now on."""
        if not self.hooks:
            makers = (write_json_lines, write_tensorboard, print_progress)
            self.hooks = [make(self.config, start) for make in makers]
        if self.checkpoints is None and self.config.checkpoint_every:
            self.checkpoints = datastates.Checkpointer(self.config.run_dir, keep_last=self.config.keep_last, alone=True)

    def keep(self, trainer: ElasticTrainer, metrics: Metrics, last: bool) -> None:
        """After every committed step, and after every evaluation."""
        step = trainer.progress.committed
        if "eval_loss" not in metrics:
            metrics |= self._checkpoint(trainer, step, last)
            now = time.perf_counter()
            metrics["step_s"], self._marked = now - self._marked, now
            metrics["tokens_per_s"] = self.config.global_batch * self.config.context / metrics["step_s"]
            metrics["ranks"] = trainer.run.num_ranks
        for on_metrics in self.hooks:
            on_metrics(step, metrics)

    def _checkpoint(self, trainer: ElasticTrainer, step: int, last: bool) -> Metrics:
        due = last or (step + 1) % max(1, self.config.checkpoint_every) == 0
        if not self.checkpoints or not due or step in self.checkpoints.steps():  # the rank 0 before had time for it
            return {}
        before = self.checkpoints.stats()
        self._last = self.checkpoints.checkpoint(step, trainer.state, metadata=dataclasses.asdict(self.config))
        return checkpoint_metrics(step, before, self.checkpoints.stats())

    def close(self) -> None:
        """Wait for what is on its way to storage."""
        if self._last is not None:
            print(f"durable: {self._last.durable.result()}", flush=True)
        if self.checkpoints is not None:
            self.checkpoints.close()


def train(config: Config) -> None:
    """Run the job from where it is to its last step, on whoever lives."""
    torch.set_num_threads(1)
    run = elaswave.join(backend="elastic")
    trainer = ElasticTrainer(config, run, np.load(token_cache(config), mmap_mode="r"))
    mark = PhaseMark(Path(config.run_dir) / "phases" / f"rank-{run.rank:05d}")
    keeper = Keeper(config)
    begin(trainer, keeper)
    with contextlib.closing(keeper):
        for metrics in happenings(trainer):
            step = trainer.progress.committed
            mark(step, "done")
            asked = metrics.pop("asked", 0) > 0
            if run.rank == 0:
                keeper.take_office(step)
                keeper.keep(trainer, metrics, last=asked or step + 1 == config.steps)
            if asked:
                break


def begin(trainer: ElasticTrainer, keeper: Keeper) -> None:
    """Start from the newest checkpoint, which rank 0 reads, or from what the others do if they are under way."""
    run = trainer.run
    if run.view is not None:
        trainer.follow(run.view)
        return
    if run.rank == 0:
        keeper.take_office(0)
        if keeper.checkpoints:
            start = keeper.checkpoints.restore(trainer.state)
            trainer.progress = Progress(committed=start - 1, summed=start - 1, evaluated=start - 1, has_state=True)
        print(f"{run.num_ranks} ranks; starts with step {trainer.progress.committed + 1}", flush=True)
    trainer.share(0)


def happenings(trainer: ElasticTrainer) -> Iterator[Metrics]:
    """Yield after every committed step and every evaluation; deaths and newcomers are dealt with in between."""
    while trainer.evaluation_is_due or trainer.progress.committed + 1 < trainer.config.steps:
        metrics: Metrics | None = None
        try:
            metrics = trainer.evaluate() if trainer.evaluation_is_due else trainer.step()
        except dist.DistBackendError as error:
            metrics = recovered(trainer, error)
        while metrics is not None:
            yield metrics
            metrics = recovered(trainer) if trainer.newcomers else None


def recovered(trainer: ElasticTrainer, error: dist.DistBackendError | None = None) -> Metrics | None:
    """Recover from the loss that ``error`` tells of, or let newcomers in; again, if it happens meanwhile."""
    while True:
        if error is not None and elaswave.lost(error) is None:
            raise error
        trainer.newcomers = 0.0
        try:
            return trainer.recover()
        except dist.DistBackendError as another:
            error = another
