"""``elastates ckpt export``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from datastates import cli
from datastates.cli.location import local_path, location
from datastates.cli.output import Progress, size_of, size_text
from datastates.convert import EXPORTS, export
from datastates.dtypes import dtype_of
from datastates.reader import open_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Write a checkpoint, or a part of it, in another format. What is written appears whole or not at "
        "all, and nothing is overwritten. Every byte that is read is verified."
    )
    parser.add_argument("path", type=location, help="a checkpoint, or a directory of checkpoints: its newest whole one")
    parser.add_argument("out", type=local_path, help="a new file (safetensors, torch) or directory (hf, dcp)")
    parser.add_argument(
        "--to",
        choices=EXPORTS,
        required=True,
        help="safetensors: one file of tensors; hf: a Hugging Face directory of the model; dcp: a directory of "
        "torch.distributed.checkpoint; torch: a file of torch.save",
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="tensors like model.*; may be repeated"
    )
    parser.add_argument("--dtype", type=dtype_of, help="what floating-point tensors become, such as bfloat16")
    parser.add_argument("--strip", metavar="PREFIX", help="taken from the front of names (hf: model.)")
    parser.add_argument("--max-shard-size", type=size_of, default=size_of("5GB"), help="of hf's files (5GB)")
    parser.add_argument("--config", type=Path, help="a config.json to put into the hf directory")
    parser.add_argument("--rank", type=int, default=0, help="whose values, where every rank has its own (%(default)s)")
    parser.add_argument(
        "--allow-pickle", action="store_true", help="decode pickles in the Python state; runs their code"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Export."""
    reader = open_checkpoint(options.path)
    begun_s = time.perf_counter()
    with Progress(f"export {reader.path.name}") as progress:
        export(
            reader,
            options.out,
            to=options.to,
            only=options.only,
            dtype=options.dtype,
            strip=options.strip,
            max_shard_bytes=options.max_shard_size,
            config=options.config,
            rank=options.rank,
            allow_pickle=options.allow_pickle,
            progress=progress,
        )
    files = [options.out] if options.out.is_file() else [path for path in options.out.rglob("*") if path.is_file()]
    size_bytes = sum(path.stat().st_size for path in files)
    elapsed_s = time.perf_counter() - begun_s
    print(f"{options.out}: {size_text(size_bytes)} in {len(files)} files, {elapsed_s:.2f} s, from {reader.path}")
    return cli.OK
