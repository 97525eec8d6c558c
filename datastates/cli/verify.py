"""``elastates ckpt verify``."""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datastates import cli
from datastates.cli.location import location
from datastates.cli.output import Progress, print_json, size_text
from datastates.directory import CheckpointDirectory
from datastates.errors import DamagedCheckpointError
from datastates.manifest import FILE_NAME
from datastates.reader import CheckpointReader, Damage, open_checkpoint
from datastates.remote import RemoteCheckpoints

MAX_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Read every byte of a checkpoint and compare it with its checksums; damaged ranges are named with "
        "the tensors in them. Exit status 2 if there is damage."
    )
    parser.add_argument("path", type=location, help="a checkpoint, or a directory of checkpoints: its newest")
    parser.add_argument("--all", action="store_true", help="every checkpoint of the directory")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Verify, print, and say by the exit status whether all is well."""
    checks = (
        _of_url(options.path, options.all) if isinstance(options.path, str) else _of_path(options.path, options.all)
    )
    reports = [report for name, check in checks if (report := _verify(name, check, options.json)) is not None]
    if not reports:
        raise FileNotFoundError(f"{options.path}: what there was has been removed since")
    if options.json:
        print_json(reports)
    return cli.DAMAGED if any(report["damage"] for report in reports) else cli.OK


Check = Callable[[], "tuple[list[Damage], int] | None"]
"""Reads a checkpoint; (all damage, bytes read), or ``None`` if the checkpoint has gone meanwhile."""


def _of_path(path: Path, everything: bool) -> list[tuple[str, Check]]:
    directory = CheckpointDirectory(path)
    if CheckpointDirectory.is_step(path) or (path / FILE_NAME).exists():
        return [(str(path), functools.partial(verified, path))]
    steps = directory.steps()
    if not steps:
        raise FileNotFoundError(f"{path} holds no checkpoint")
    paths = [directory.of_step(step) for step in (steps if everything else steps[-1:])]
    return [(str(found), functools.partial(_verified_if_there, found)) for found in paths]


def _of_url(url: str, everything: bool) -> list[tuple[str, Check]]:
    remote = RemoteCheckpoints(url)
    steps = remote.steps()
    if not steps:
        raise FileNotFoundError(f"{url} holds no checkpoint")
    chosen = steps if everything else steps[-1:]
    return [(remote.url_of(step), functools.partial(_verified_remote, remote, step)) for step in chosen]


def _verify(name: str, check: Check, quiet: bool) -> dict[str, Any] | None:
    begun_s = time.perf_counter()
    found = check()
    if found is None:
        return None
    damage, size_bytes = found
    elapsed_s = time.perf_counter() - begun_s
    if not quiet:
        state = f"{len(damage)} damaged ranges" if damage else "whole"
        speed = size_text(size_bytes / elapsed_s)
        print(f"{name}: {state}; {size_text(size_bytes)} in {elapsed_s:.2f} s, {speed}/s", flush=True)
        for item in damage[:MAX_SHOWN]:
            print(f"  {item.what}{_tensors_text(item)}")
        if len(damage) > MAX_SHOWN:
            print(f"  and {len(damage) - MAX_SHOWN} more; --json lists all")
    return {
        "path": name,
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
    return damage, stored_bytes(reader)


def _verified_if_there(path: Path) -> tuple[list[Damage], int] | None:
    """As :func:`verified`; a job may prune while we read, and what it has removed is not damaged."""
    try:
        found = verified(path)
    except FileNotFoundError:
        return None
    return None if found[0] and not path.exists() else found


def _verified_remote(remote: RemoteCheckpoints, step: int) -> tuple[list[Damage], int]:
    """Fetching is reading everything and comparing it with the checksums."""
    try:
        reader = remote.open(step)
    except DamagedCheckpointError as error:
        return [Damage(FILE_NAME if FILE_NAME in str(error) else "", 0, 0, (), str(error))], 0
    return [], stored_bytes(reader)


def stored_bytes(reader: CheckpointReader) -> int:
    """What verifying a checkpoint reads."""
    manifest = reader.manifest
    return sum(file.size_bytes for file in manifest.files) + sum(objects.size_bytes for objects in manifest.objects)


def _tensors_text(item: Damage) -> str:
    if not item.tensors:
        return ""
    shown = ", ".join(item.tensors[:4])
    return f"; tensors {shown}" + (f" and {len(item.tensors) - 4} more" if len(item.tensors) > 4 else "")
