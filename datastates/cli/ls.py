"""``elastates ckpt ls``."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datastates import cli
from datastates.cli.output import age_text, print_json, size_text, table
from datastates.directory import CheckpointDirectory, read_manifest
from datastates.errors import DamagedCheckpointError
from datastates.manifest import Manifest


@dataclass(frozen=True)
class Listed:
    """A checkpoint of a directory, as far as can be told without reading its data."""

    step: int
    path: str
    state: str
    """``whole``, ``delta`` (whole, and it shares data with an older one) or ``damaged``."""
    size_bytes: int
    """Of its files; what a delta shares with others counts in each."""
    age_s: float
    num_ranks: int | None
    num_tensors: int | None
    problem: str | None


def add_command(commands: Any) -> None:
    """Declare the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "ls",
        help="list the checkpoints of a directory",
        description="List checkpoints: size, age, ranks, and whether manifest, headers and file sizes are as written; "
        "'verify' also reads the data. Exit status 2 if one is damaged.",
    )
    parser.add_argument("path", type=Path, help="a directory of checkpoints")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the list."""
    directory = CheckpointDirectory(options.path)
    if not options.path.is_dir():
        raise FileNotFoundError(f"{options.path} is no directory")
    listed = [look_at(directory.of_step(step)) for step in directory.steps()]
    leftovers = [entry.name for entry in directory.leftovers()]
    aside = [entry.name for entry in directory.set_aside()]
    holder = directory.holder()
    if options.json:
        print_json(
            {
                "path": str(options.path),
                "checkpoints": [asdict(item) for item in listed],
                "dead_attempts": leftovers if holder is None else [],
                "attempts": leftovers if holder is not None else [],
                "set_aside": aside,
                "written_by": holder,
            }
        )
    else:
        _print_text(options.path, listed, leftovers, aside, holder)
    return cli.DAMAGED if any(item.problem for item in listed) else cli.OK


def look_at(path: Path) -> Listed:
    """One checkpoint, without reading its data."""
    step = int(path.name.removeprefix("step-"))
    size_bytes = sum(allocated_bytes(entry) for entry in path.iterdir())
    try:
        manifest = read_manifest(path)
    except DamagedCheckpointError as error:
        age_s = time.time() - path.stat().st_mtime
        return Listed(step, str(path), "damaged", size_bytes, age_s, None, None, str(error))
    state = "delta" if is_delta(manifest) else "whole"
    age_s = time.time() - manifest.created_unix_s
    return Listed(step, str(path), state, size_bytes, age_s, manifest.num_ranks, len(manifest.tensors), None)


def allocated_bytes(path: Path) -> int:
    """What a file takes: a delta's data file has holes."""
    stat = path.stat()
    return min(stat.st_size, stat.st_blocks * 512)


def is_delta(manifest: Manifest) -> bool:
    """Whether some of a checkpoint's data is in files that an older checkpoint wrote."""
    return any(file.sources for file in manifest.files)


def _print_text(path: Path, listed: list[Listed], leftovers: list[str], aside: list[str], holder: str | None) -> None:
    if listed:
        rows = [
            [
                str(item.step),
                size_text(item.size_bytes),
                age_text(item.age_s),
                str(item.num_ranks or "?"),
                str(item.num_tensors or "?"),
                item.state,
            ]
            for item in listed
        ]
        print(table(("step", "size", "age", "ranks", "tensors", "state"), rows, right=(0, 1, 2, 3, 4)))
    else:
        print(f"no checkpoints in {path}")
    for item in listed:
        if item.problem:
            print(f"damaged: {item.problem}")
    if holder is not None:
        print(f"being written by {holder}")
    elif leftovers:
        print(f"{len(leftovers)} dead attempts, which the next job or 'repair' removes")
    if aside:
        print(f"{len(aside)} damaged checkpoints set aside: {', '.join(aside)}")
