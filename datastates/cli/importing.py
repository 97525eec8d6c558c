"""``elastates ckpt import``."""

from __future__ import annotations

import argparse
import time

from datastates import cli
from datastates.cli.location import local_path
from datastates.cli.output import Progress, size_text
from datastates.convert import IMPORTS, import_state
from datastates.reader import open_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Publish a checkpoint made from a file of torch.save or safetensors, or a directory of "
        "torch.distributed.checkpoint or Hugging Face; restore() takes it."
    )
    parser.add_argument("source", type=local_path, help="the file or directory to read")
    parser.add_argument("path", type=local_path, help="a directory of checkpoints; made if there is none")
    parser.add_argument("--step", type=int, default=0, help="of the new checkpoint: restore() returns the next (0)")
    parser.add_argument("--from", dest="format", choices=IMPORTS, help="its format, if it is not as its name says")
    parser.add_argument(
        "--prefix", help="put in front of names; by default 'model.' where the state is one module's, else nothing"
    )
    parser.add_argument("--allow-pickle", action="store_true", help="read what only pickle can read; runs its code")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Import."""
    begun_s = time.perf_counter()
    with Progress(f"import {options.source.name}") as progress:
        path = import_state(
            options.source,
            options.path,
            step=options.step,
            format=options.format,
            prefix=options.prefix,
            allow_pickle=options.allow_pickle,
            progress=progress,
        )
    manifest = open_checkpoint(path).manifest
    elapsed_s = time.perf_counter() - begun_s
    print(f"{path}: {len(manifest.tensors)} tensors, {size_text(manifest.data_bytes)}, {elapsed_s:.2f} s")
    return cli.OK
