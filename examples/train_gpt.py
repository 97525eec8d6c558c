"""Train a small GPT on text, checkpoint after every step, survive anything.

    torchrun --standalone --nproc-per-node 4 examples/train_gpt.py --config examples/gpt.yaml

Run the same command again after a crash, a kill or a signal: the job goes on from its newest whole checkpoint and ends
with the same bits as a job that was never interrupted. Four things make that true, marked "exact:" below: one
intra-op thread, gradients summed in rank order, the random state and the data position in the checkpoint.

On SIGTERM or SIGUSR1 the ranks finish the step, make its checkpoint durable and exit with 0. torchrun passes SIGTERM on
to them, then reports it by an exit status of 1; for SIGUSR1 start it with --signals-to-handle SIGTERM,SIGINT,SIGUSR1.

Shapes: B = rows of a micro-batch, T = context (bytes per row), D = width.
"""

import argparse
import ast
import contextlib
import dataclasses
import hashlib
import inspect
import itertools
import json
import math
import os
import signal
import sys
import sysconfig
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import datastates

VOCABULARY = 256  # tokens are bytes
COLLECTIVE_TIMEOUT = timedelta(minutes=5)


# ---- configuration --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Every setting of the job: YAML keys, and command-line flags, which win."""

    run_dir: str = "runs/gpt"
    """directory of checkpoints, metrics.jsonl and TensorBoard events; the job resumes from what it finds here"""
    data: str = ""
    """text to train on, a file or a directory; empty: the source of this Python's standard library"""
    cache_dir: str = "runs/data"
    """directory of the token caches (.npy), which jobs may share"""
    dump_final: str = ""
    """file to which the last step's parameters and moments are saved with plain safetensors; empty: none"""
    seed: int = 1
    """seed of the initial weights, of dropout and of the order of the data"""
    steps: int = 60
    """optimizer steps of the whole job, those before a resume included"""
    width: int = 192
    """size D of the residual stream"""
    layers: int = 4
    """number of transformer blocks"""
    heads: int = 6
    """attention heads per block; must divide the width"""
    context: int = 128
    """bytes T per row"""
    dropout: float = 0.05
    """probability of dropping an element of a block's output"""
    global_batch: int = 32
    """rows per optimizer step over all ranks, however many there are"""
    micro_batch: int = 4
    """rows B per forward pass; gradients accumulate over global_batch / (micro_batch * ranks) passes"""
    learning_rate: float = 3e-3
    """peak learning rate of AdamW"""
    min_lr_fraction: float = 0.1
    """learning rate at the last step, as a fraction of the peak"""
    warmup_steps: int = 8
    """steps over which the learning rate rises to its peak; a cosine follows"""
    weight_decay: float = 0.1
    """decay of the blocks' matrices; gains, biases and embeddings have none"""
    clip_norm: float = 1.0
    """longest gradient; a longer one is scaled down to it"""
    eval_fraction: float = 0.05
    """fraction of the text, at its end, that is never trained on"""
    eval_every: int = 20
    """steps between evaluations; 0: never"""
    eval_rows: int = 32
    """rows per evaluation over all ranks"""
    checkpoint_every: int = 1
    """steps between checkpoints; 0: no checkpoints, and so no resume"""
    keep_last: int = 3
    """checkpoints to keep"""

    def __post_init__(self) -> None:
        self._require(
            "steps width layers heads context global_batch micro_batch eval_rows keep_last", lambda n: n >= 1, ">= 1"
        )
        self._require("seed warmup_steps weight_decay eval_every checkpoint_every", lambda n: n >= 0, ">= 0")
        self._require("dropout min_lr_fraction eval_fraction", lambda x: 0 <= x < 1, "in [0, 1)")
        self._require("learning_rate clip_norm", lambda x: x > 0, "> 0")
        self._require("heads", lambda n: self.width % n == 0, f"a divisor of width ({self.width})")

    def _require(self, names: str, holds: Callable[..., bool], what: str) -> None:
        for name in names.split():
            if not holds(getattr(self, name)):
                raise ValueError(f"{name} must be {what}, got {getattr(self, name)!r}")

    def num_micro_batches(self, num_ranks: int) -> int:
        rows = self.micro_batch * num_ranks
        if self.global_batch % rows:
            product = f"micro_batch * ranks ({self.micro_batch} * {num_ranks})"
            raise ValueError(f"{product} must divide global_batch ({self.global_batch})")
        return self.global_batch // rows


def read_config(arguments: list[str] | None = None) -> Config:
    """Read the file named by --config, then the flags; the help text comes from the docstrings above."""
    usage = "%(prog)s [--config FILE] [--SETTING VALUE]..."
    parser = argparse.ArgumentParser(
        usage=usage, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of the settings below")
    source = ast.parse(inspect.getsource(Config)).body[0]
    assert isinstance(source, ast.ClassDef)
    pairs = [(a, ast.unparse(b)) for a, b in itertools.pairwise(source.body) if isinstance(a, ast.AnnAssign)]
    docs = {ast.unparse(field.target): ast.literal_eval(doc) for field, doc in pairs}
    for field in dataclasses.fields(Config):
        flag, text = f"--{field.name.replace('_', '-')}", f"{docs[field.name]} (default: {field.default!r})"
        parser.add_argument(flag, type=field.type, default=field.default, metavar="VALUE", help=text)
    try:
        path = parser.parse_known_args(arguments)[0].config
        settings = yaml.safe_load(Path(path).read_text()) or {} if path else {}
        if unknown := sorted(set(settings) - set(docs)):
            raise ValueError(f"unknown settings {unknown} in {path}; known: {', '.join(docs)}")
        # As strings, so that argparse converts and checks them like flags: PyYAML reads 3e-4 as a string, too.
        parser.set_defaults(**{name: str(value) for name, value in settings.items() if value is not None})
        flags = vars(parser.parse_args(arguments))
        return Config(**{name: flags[name] for name in docs})
    except (OSError, ValueError, yaml.YAMLError) as error:
        parser.error(str(error))


# ---- data -----------------------------------------------------------------------------------------------------------


def text_files(data: str) -> list[Path]:
    """List the files to train on, in an order that depends on nothing but their names."""
    root = Path(data or sysconfig.get_paths()["stdlib"])
    if root.is_file():
        return [root]
    files: list[Path] = []
    for directory, children, names in os.walk(root):
        if not data:  # what pip installed is not the standard library
            children[:] = [name for name in children if name not in ("site-packages", "dist-packages")]
        files += [Path(directory, name) for name in names if data or name.endswith(".py")]
    if not files:
        raise FileNotFoundError(f"no text to train on: {root} is neither a file nor a directory with files in it")
    return sorted(files)


def token_cache(config: Config) -> Path:
    """Write the text as one .npy of bytes unless that is done already; returns its path, which names the content."""
    files = text_files(config.data)
    listing = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    name = hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]
    cache = Path(config.cache_dir) / f"{Path(config.data).name or 'stdlib'}-{name}.npy"
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        unfinished = cache.with_name(f".{cache.name}.{os.getpid()}")
        with open(unfinished, "wb") as file:
            np.save(file, np.frombuffer(b"\n".join(path.read_bytes() for path in files), np.uint8))
        os.replace(unfinished, cache)  # a reader sees all of it or nothing, also when two jobs start together
    return cache


class Rows:
    """Rows of T + 1 bytes in a shuffled order; every row comes once per epoch.

    exact: the order is a function of (seed, epoch), and `rows_served`, the whole position, is the same on every rank
    and in the checkpoint. So a resumed job neither skips nor repeats a row, on whatever number of ranks.
    """

    def __init__(self, tokens: np.ndarray, config: Config, rank: int, num_ranks: int) -> None:
        self.tokens, self.config, self.rank, self.num_ranks = tokens, config, rank, num_ranks
        self.num_micro_batches = config.num_micro_batches(num_ranks)
        num_rows = (len(tokens) - 1) // config.context
        self.num_train = int(num_rows * (1 - config.eval_fraction))
        self.num_eval = num_rows - self.num_train
        if self.num_train < 1 or (config.eval_every and self.num_eval < config.eval_rows):
            has = f"{len(tokens)} bytes of text make {self.num_train} rows to train and {self.num_eval} to evaluate on"
            raise ValueError(f"{has}; needed: 1 and {config.eval_rows} rows of {config.context} bytes")
        self.rows_served = 0
        self.identity = {"text_crc32": zlib.crc32(tokens.data), "seed": config.seed, "context": config.context}
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def next_step(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this rank's micro-batches of one optimizer step, each an input and a target of [B, T]."""
        first, size = self.rows_served, self.config.micro_batch
        self.rows_served += self.config.global_batch
        for micro in range(self.num_micro_batches):
            begin = first + (micro * self.num_ranks + self.rank) * size
            yield self._rows([self._shuffled(row) for row in range(begin, begin + size)])

    def evaluation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this rank's share of the evaluation rows, one by one; they are spread over the held-out text."""
        stride = self.num_eval // self.config.eval_rows
        for row in range(self.rank, self.config.eval_rows, self.num_ranks):
            yield self._rows([self.num_train + row * stride])

    def state_dict(self) -> dict[str, int]:
        return {"rows_served": self.rows_served} | self.identity

    def load_state_dict(self, state: dict[str, int]) -> None:
        for name, value in self.identity.items():
            if state[name] != value:
                raise ValueError(
                    f"cannot go on with other data: {name} is {state[name]} in the checkpoint, {value} now"
                )
        self.rows_served = state["rows_served"]

    def _shuffled(self, row: int) -> int:
        epoch, index = divmod(row, self.num_train)
        if epoch != self._epoch:
            random = np.random.Generator(np.random.Philox([self.config.seed, epoch]))
            self._epoch, self._order = epoch, random.permutation(self.num_train)
        return int(self._order[index])

    def _rows(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        length = self.config.context
        batch = torch.from_numpy(np.stack([self.tokens[row * length : (row + 1) * length + 1] for row in rows])).long()
        return batch[:, :-1], batch[:, 1:]


# ---- model ----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each reading the normalised stream and adding to it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, width = config.heads, config.width
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.attended = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, stream: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, heads, T, D / heads]
            for part in self.qkv(self.norm_attention(stream)).chunk(3, dim=2)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        stream = stream + self.dropout(self.attended(mixed))
        return stream + self.dropout(self.down(F.gelu(self.up(self.norm_mlp(stream)))))


class GPT(nn.Module):
    """A decoder-only transformer over bytes."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, config.width)
        self.position = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm, self.head = nn.LayerNorm(config.width), nn.Linear(config.width, VOCABULARY, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        # With 0.02 here too, the loss stays at that of guessing single bytes, 3.0, for longer than this example runs.
        nn.init.normal_(self.token.weight, std=0.5)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss, in nats per byte, of [B, T] tokens predicting [B, T] targets."""
        stream = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            stream = block(stream)
        return F.cross_entropy(self.head(self.norm(stream)).flatten(0, 1), targets.flatten())


def make_optimizer(model: GPT, config: Config) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.blocks.parameters() if parameter.dim() == 2]
    decayed = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in decayed]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))


def lr_fraction(step: int, config: Config) -> float:
    """Return the learning rate at a step over its peak: linear warm-up, then a cosine down to the minimum."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = min(1.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    return config.min_lr_fraction + (1 - config.min_lr_fraction) * 0.5 * (1 + math.cos(math.pi * done))


# ---- the distributed job --------------------------------------------------------------------------------------------


def from_launcher(names: str, default: int) -> int:
    """Read a number that torchrun, srun or mpirun (in this order) has put into the environment."""
    return next((int(os.environ[name]) for name in names.split() if name in os.environ), default)


def local_rank() -> int:
    return from_launcher("LOCAL_RANK SLURM_LOCALID OMPI_COMM_WORLD_LOCAL_RANK", 0)


def join_job() -> torch.device:
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
    backend = "nccl" if cuda else "gloo"
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


class StopSignals:
    """Remembers a SIGTERM or SIGUSR1; `run_steps` lets the ranks agree on the step after which they stop."""

    def __init__(self) -> None:
        self.received = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._remember)

    def _remember(self, _number: int, _frame: object) -> None:
        self.received = True


class PhaseMark:
    """A small file that says what this rank is doing, so that after a sudden death one knows where it was."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)

    def __call__(self, step: int, phase: str) -> None:
        os.pwrite(self._file, f"{step:>10} {phase:<10}\n".encode(), 0)  # one short write: never seen half


# ---- metrics --------------------------------------------------------------------------------------------------------

Metrics = dict[str, float]
MetricsHook = Callable[[int, Metrics], None]  # on_metrics(step, {name: value}), after every step, on rank 0


def write_json_lines(config: Config, start: int) -> MetricsHook:
    """Append to metrics.jsonl. A step whose checkpoint a killed job did not finish comes twice, with equal losses.

    Every bit of a float is kept: Python prints the shortest text that reads back as the same number.
    """
    file = open(Path(config.run_dir) / "metrics.jsonl", "a", buffering=1)  # noqa: SIM115 (open as long as the job)
    return lambda step, metrics: print(json.dumps({"step": step, "start": start} | metrics), file=file)


def write_tensorboard(config: Config, start: int) -> MetricsHook:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return lambda step, metrics: None
    board = SummaryWriter(config.run_dir, purge_step=start)

    def on_metrics(step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            board.add_scalar(name, value, step)
        board.flush()  # the process leaves without the interpreter's farewell: see the end of this file

    return on_metrics


def print_progress(config: Config, _start: int) -> MetricsHook:
    def on_metrics(step: int, metrics: Metrics) -> None:
        line = f"step {step:>4}/{config.steps}  loss {metrics['loss']:.4f}  {metrics['tokens_per_s']:>7,.0f} tokens/s"
        if "checkpoint_stall_ms" in metrics:
            line += f"  stall {metrics['checkpoint_stall_ms']:6.1f} ms  durable lag {metrics['durable_lag_steps']}"
        print(line + (f"  eval loss {metrics['eval_loss']:.4f}" if "eval_loss" in metrics else ""), flush=True)

    return on_metrics


def checkpoint_metrics(step: int, before: datastates.CheckpointStats, now: datastates.CheckpointStats) -> Metrics:
    """Return what checkpoints cost this step, in the call and at the gate, and how far behind storage is."""
    stall_s = now.call_s_total - before.call_s_total + now.gate_wait_s_total - before.gate_wait_s_total
    lag_steps = step - (-1 if now.last_durable_step is None else now.last_durable_step)
    metrics = {"checkpoint_stall_ms": stall_s * 1e3, "durable_lag_steps": lag_steps}
    return metrics | ({"durable_mb_s": now.last_durable_mb_s} if now.last_durable_mb_s else {})


# ---- the loop -------------------------------------------------------------------------------------------------------


class Trainer:
    """Model, optimizer, data and everything else that a step changes: `state` is what a checkpoint holds."""

    def __init__(self, config: Config, device: torch.device, tokens: np.ndarray) -> None:
        self.config, self.device, self.rank, self.num_ranks = config, device, dist.get_rank(), dist.get_world_size()
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
        loss, last = 0.0, self.rows.num_micro_batches - 1
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
    settings = read_config()
    train(settings, join_job())
    dist.destroy_process_group()
    # All is closed and on storage. torch's threads may still come back for the interpreter while it goes down, which
    # aborts the process ("terminate called without an active exception"): do not go down.
    sys.stdout.flush()
    os._exit(0)
