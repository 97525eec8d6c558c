"""``elastates ckpt archive``."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from datastates import cli
from datastates.cli.location import local_path, location
from datastates.cli.output import Progress, print_json, size_text, table
from datastates.reader import open_checkpoint
from datastates.zarr import archive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Write a checkpoint as a compressed Zarr hierarchy (version 3, sharded), which tensorstore and zarr-python "
        "open. It appears whole or not at all, and nothing is overwritten. Every byte that is read is verified. "
        "Needs the extra 'zarr'."
    )
    parser.add_argument("path", type=location, help="a checkpoint, or a directory of checkpoints: its newest whole one")
    parser.add_argument("out", type=local_path, help="a new directory")
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
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
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
