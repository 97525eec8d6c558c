"""``elastates ckpt archive`` and ``elastates ckpt unarchive``."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datastates import cli
from datastates.cli.output import Progress, print_json, size_text, table
from datastates.reader import open_checkpoint
from datastates.zarr import archive, unarchive


def add_command(commands: Any) -> None:
    """Declare both commands."""
    _add_archive(commands)
    _add_unarchive(commands)


def _add_archive(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "archive",
        help="write a checkpoint as compressed Zarr",
        description="Write a checkpoint as a compressed Zarr hierarchy (version 3, sharded), which tensorstore and "
        "zarr-python open. It appears whole or not at all, and nothing is overwritten. Every byte that is read is "
        "verified. Needs the extra 'zarr'.",
    )
    parser.add_argument("path", type=Path, help="a checkpoint, or a directory of checkpoints: its newest whole one")
    parser.add_argument("out", type=Path, help="a new directory")
    parser.add_argument(
        "--codec",
        default="auto",
        help="auto (the default) measures all on a sample of every kind of tensor; or none, zstd, blosc-lz4-shuffle, "
        "blosc-lz4-bitshuffle, blosc-zstd-shuffle, blosc-zstd-bitshuffle",
    )
    parser.add_argument(
        "--min-mb-s", type=float, default=100, help="auto leaves out codecs slower than this on a thread (%(default)s)"
    )
    parser.add_argument("--shard-mb", type=float, default=64, help="most a file holds, uncompressed (%(default)s)")
    parser.add_argument("--threads", type=int, help="files in work at a time; default: processors, 8 at most")
    parser.add_argument("--json", action="store_true", help="print JSON, with all that was measured")
    parser.set_defaults(run=run_archive)


def _add_unarchive(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "unarchive",
        help="write an archive as a checkpoint again",
        description="Write the content of an archive as a checkpoint of its step, bit for bit, all tensors in one "
        "file. Exit status 2 if the archive is damaged, 4 if a job is writing to the directory.",
    )
    parser.add_argument("archive", type=Path, help="what 'archive' wrote")
    parser.add_argument("directory", type=Path, help="a directory of checkpoints; made if there is none")
    parser.add_argument("--threads", type=int, help="files in work at a time; default: processors, 8 at most")
    parser.set_defaults(run=run_unarchive)


def run_archive(options: argparse.Namespace) -> int:
    """Archive."""
    reader = open_checkpoint(options.path)
    with Progress(f"archive {reader.path.name}") as progress:
        report = archive(
            reader,
            options.out,
            codec=options.codec,
            min_mb_s=options.min_mb_s,
            shard_mb=options.shard_mb,
            threads=options.threads,
            progress=progress,
        )
    if options.json:
        print_json(asdict(report) | {"ratio": report.ratio})
        return cli.OK
    speed = size_text(report.raw_bytes / report.elapsed_s)
    print(
        f"{report.path}: step {report.step}, {size_text(report.raw_bytes)} in {size_text(report.stored_bytes)} "
        f"(ratio {report.ratio:.2f}), {report.elapsed_s:.2f} s, {speed}/s"
    )
    print(table(["kind of tensor", "codec"], sorted(report.codecs.items())))
    return cli.OK


def run_unarchive(options: argparse.Namespace) -> int:
    """Unarchive."""
    path = unarchive(options.archive, options.directory, threads=options.threads)
    print(f"{path}: written and verified, from {options.archive}")
    return cli.OK
