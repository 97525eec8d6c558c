"""``elastates ckpt prune``."""

from __future__ import annotations

import argparse
from typing import Any

from datastates import cli
from datastates.cli.listing import look_at
from datastates.cli.location import local_path
from datastates.cli.output import print_json, size_text
from datastates.cli.verify import verified
from datastates.directory import CheckpointDirectory, expired
from datastates.errors import DamagedCheckpointError, DirectoryBusyError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Remove checkpoints that retention lets go. Before anything is removed, one that stays is verified "
        "in full; damaged ones count neither as kept nor as removable. Exit status 2 if none that would stay is whole, "
        "4 if a job is writing there."
    )
    parser.add_argument("path", type=local_path, help="a directory of checkpoints")
    parser.add_argument("--keep-last", type=_count, required=True, help="how many of the newest stay, at least 1")
    parser.add_argument("--keep-every", type=_count, help="steps that this divides stay as well")
    parser.add_argument("--dry-run", action="store_true", help="say what would go, change nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError(f"{text} is less than 1")
    return value


def run(options: argparse.Namespace) -> int:
    """Choose, verify, remove."""
    directory = CheckpointDirectory(options.path)
    if not options.path.is_dir():
        raise FileNotFoundError(f"{options.path} is no directory")
    if options.dry_run:
        if holder := directory.holder():
            raise DirectoryBusyError(f"{options.path} is being written by {holder}")
        report = prune(directory, options.keep_last, options.keep_every, dry_run=True)
    else:
        directory.lock()
        try:
            report = prune(directory, options.keep_last, options.keep_every, dry_run=False)
        finally:
            directory.unlock()
    if options.json:
        print_json(report)
    else:
        verb = "would remove" if options.dry_run else "removed"
        removed = ", ".join(map(str, report["removed"])) or "nothing"
        print(f"{verb} {removed}; {size_text(report['freed_bytes'])}")
        print(f"kept {', '.join(map(str, report['kept']))}; step {report['verified']} verified")
        if report["damaged"]:
            print(f"left alone, damaged: {', '.join(map(str, report['damaged']))}; see 'repair'")
    return cli.OK


def prune(directory: CheckpointDirectory, keep_last: int, keep_every: int | None, *, dry_run: bool) -> dict[str, Any]:
    """Remove what retention lets go, once one that stays has been verified in full.

    Raises:
        DamagedCheckpointError: none that would stay is whole; nothing has been removed.
    """
    looked_at = {step: look_at(directory.of_step(step)) for step in directory.steps()}
    listed = {step: item for step, item in looked_at.items() if item is not None}  # without the lock, some may go
    whole = [step for step, item in listed.items() if item.problem is None]
    going = expired(whole, keep_last, keep_every)
    kept = [step for step in whole if step not in going]
    proven = None
    while kept and proven is None:
        if verified(directory.of_step(kept[-1]))[0]:
            # Its data is damaged: it does not count, so an older one may have to stay in its place.
            whole.remove(kept[-1])
            going = expired(whole, keep_last, keep_every)
            kept = [step for step in whole if step not in going]
        else:
            proven = kept[-1]
    if proven is None:
        raise DamagedCheckpointError(
            f"{directory.path}: no checkpoint is whole, so nothing was removed; see 'verify --all' and 'repair'"
        )
    if not dry_run:
        directory.remove(going)
    return {
        "path": str(directory.path),
        "removed": going,
        "kept": kept,
        "verified": proven,
        "damaged": [step for step in listed if step not in whole],
        "freed_bytes": sum(listed[step].size_bytes for step in going),
        "dry_run": dry_run,
    }
