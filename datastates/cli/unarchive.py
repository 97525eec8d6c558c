"""``elastates ckpt unarchive``."""

from __future__ import annotations

import argparse
from pathlib import Path

from datastates import cli
from datastates.cli.location import local_path
from datastates.zarr import unarchive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Write the content of an archive as a checkpoint of its step, bit for bit, all tensors in one file. "
        "Exit status 2 if the archive is damaged, 4 if a job is writing to the directory."
    )
    parser.add_argument("archive", type=Path, help="what 'archive' wrote")
    parser.add_argument("directory", type=local_path, help="a directory of checkpoints; made if there is none")
    parser.add_argument("--threads", type=int, help="files in work at a time; default: processors, 8 at most")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Unarchive."""
    path = unarchive(options.archive, options.directory, threads=options.threads)
    print(f"{path}: written and verified, from {options.archive}")
    return cli.OK
