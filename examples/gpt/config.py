"""The settings of the job."""

import argparse
import ast
import dataclasses
import inspect
import itertools
from collections.abc import Callable
from pathlib import Path

import yaml


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
    backend: str = ""
    """of torch.distributed: gloo, nccl, or elastic, where ranks may die and the others go on; empty: what fits"""
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
        self._require(
            "global_batch", lambda n: n % self.micro_batch == 0, f"a multiple of micro_batch ({self.micro_batch})"
        )
        self._require("heads", lambda n: self.width % n == 0, f"a divisor of width ({self.width})")

    def _require(self, names: str, holds: Callable[..., bool], what: str) -> None:
        for name in names.split():
            if not holds(getattr(self, name)):
                raise ValueError(f"{name} must be {what}, got {getattr(self, name)!r}")

    @property
    def num_slots(self) -> int:
        """Micro-batches of a step, over all ranks."""
        return self.global_batch // self.micro_batch

    def num_micro_batches(self, num_ranks: int) -> int:
        """Micro-batches of a step on each rank, where all have as many."""
        rows = self.micro_batch * num_ranks
        if self.global_batch % rows:
            product = f"micro_batch * ranks ({self.micro_batch} * {num_ranks})"
            raise ValueError(f"{product} must divide global_batch ({self.global_batch})")
        return self.global_batch // rows


def read_config(description: str | None, arguments: list[str] | None = None) -> Config:
    """Read the file named by --config, then the flags; the help text comes from the docstrings above."""
    usage = "%(prog)s [--config FILE] [--SETTING VALUE]..."
    parser = argparse.ArgumentParser(
        usage=usage, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
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
