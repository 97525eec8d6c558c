"""``elastates ckpt verify``."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datastates import cli
from datastates.cli.output import Progress, print_json, size_text
from datastates.directory import CheckpointDirectory
from datastates.errors import DamagedCheckpointError
from datastates.manifest import FILE_NAME
from datastates.reader import Damage, open_checkpoint

MAX_SHOWN = 20


def add_command(commands: Any) -> None:
    """Declare the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "verify",
        help="read everything and compare it with the checksums",
        description="Read every byte of a checkpoint and compare it with its checksums; damaged ranges are named with "
        "the tensors in them. Exit status 2 if there is damage.",
    )
    parser.add_argument("path", type=Path, help="a checkpoint, or a directory of checkpoints: its newest")
    parser.add_argument("--all", action="store_true", help="every checkpoint of the directory")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Verify, print, and say by the exit status whether all is well."""
    reports = [_verify(path, options.json) for path in _paths(options.path, options.all)]
    if options.json:
        print_json(reports)
    return cli.DAMAGED if any(report["damage"] for report in reports) else cli.OK


def _paths(path: Path, everything: bool) -> list[Path]:
    directory = CheckpointDirectory(path)
    if CheckpointDirectory.is_step(path) or (path / FILE_NAME).exists():
        return [path]
    steps = directory.steps()
    if not steps:
        raise FileNotFoundError(f"{path} holds no checkpoint")
    return [directory.of_step(step) for step in (steps if everything else steps[-1:])]


def _verify(path: Path, quiet: bool) -> dict[str, Any]:
    begun_s = time.perf_counter()
    damage, size_bytes = verified(path)
    elapsed_s = time.perf_counter() - begun_s
    if not quiet:
        state = f"{len(damage)} damaged ranges" if damage else "whole"
        speed = size_text(size_bytes / elapsed_s)
        print(f"{path}: {state}; {size_text(size_bytes)} in {elapsed_s:.2f} s, {speed}/s", flush=True)
        for item in damage[:MAX_SHOWN]:
            print(f"  {item.what}{_tensors_text(item)}")
        if len(damage) > MAX_SHOWN:
            print(f"  and {len(damage) - MAX_SHOWN} more; --json lists all")
    return {
        "path": str(path),
        "size_bytes": size_bytes,
        "seconds": elapsed_s,
        "damage": [asdict(item) for item in damage],
    }


def verified(path: Path) -> tuple[list[Damage], int]:
    """All damage of a checkpoint, and the bytes that were read."""
    try:
        reader = open_checkpoint(path)
    except DamagedCheckpointError as error:
        return [Damage(FILE_NAME, 0, 0, (), str(error))], 0
    with Progress(f"verify {path.name}") as progress:
        damage = reader.verify(progress)
    sizes = [file.size_bytes for file in reader.manifest.files]
    return damage, sum(sizes) + sum(objects.size_bytes for objects in reader.manifest.objects)


def _tensors_text(item: Damage) -> str:
    if not item.tensors:
        return ""
    shown = ", ".join(item.tensors[:4])
    return f"; tensors {shown}" + (f" and {len(item.tensors) - 4} more" if len(item.tensors) > 4 else "")
