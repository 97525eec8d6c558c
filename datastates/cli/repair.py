"""``elastates ckpt repair``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from datastates import cli
from datastates.cli.location import local_path
from datastates.cli.mending import Case, examine, mend
from datastates.cli.output import print_json
from datastates.cli.verify import verified
from datastates.directory import CheckpointDirectory
from datastates.errors import DirectoryBusyError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Verify every checkpoint of a directory. A damaged one is put together again where other copies "
        "(--from) have the bytes that its checksums ask for; else it is moved aside, never deleted, so that jobs do "
        "not meet it. Dead attempts are removed. Exit status 2 if some damage could not be mended, 4 if a job is "
        "writing there."
    )
    parser.add_argument("path", type=local_path, help="a directory of checkpoints")
    parser.add_argument(
        "--from",
        dest="others",
        action="append",
        default=[],
        type=local_path,
        metavar="DIR",
        help="another copy: of the directory, or of one checkpoint; may be repeated",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, change nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Examine everything, then act."""
    directory = CheckpointDirectory(options.path)
    for path in (options.path, *options.others):
        if not path.is_dir():
            raise FileNotFoundError(f"{path} is no directory")
    if holder := directory.holder():
        raise DirectoryBusyError(f"{options.path} is being written by {holder}; repair it when that job has ended")
    dead = [path.name for path in directory.leftovers()]
    if not options.dry_run:
        directory.lock()  # which removes what dead writers left
    try:
        report = _repair(directory, options.others, options.dry_run)
    finally:
        directory.unlock()
    report["dead_attempts"] = dead
    if options.json:
        print_json(report)
    else:
        _print_text(report, options.dry_run)
    return cli.DAMAGED if report["moved_aside"] else cli.OK


def _repair(directory: CheckpointDirectory, others: list[Path], dry_run: bool) -> dict[str, Any]:
    whole, mended, aside = [], [], []
    for step in directory.steps():
        path = directory.of_step(step)
        damage, _ = verified(path)
        if not damage:
            whole.append(step)
            continue
        case = examine(step, path, damage, others)
        if case.can_be_mended:
            if not dry_run:
                mend(directory, case)
            mended.append(_told(case))
        else:
            kept = None if dry_run else str(directory.put_aside(step))
            aside.append({**_told(case), "kept_as": kept})
    for path in directory.set_aside():
        step = int(path.name.split("-")[2])
        if directory.of_step(step).exists() or any(item["step"] == step for item in (*mended, *aside)):
            continue
        case = examine(step, path, verified(path)[0], others)
        if case.can_be_mended:
            if not dry_run:
                mend(directory, case)
            mended.append(_told(case))
    return {"path": str(directory.path), "dry_run": dry_run, "whole": whole, "mended": mended, "moved_aside": aside}


def _told(case: Case) -> dict[str, Any]:
    return {
        "step": case.step,
        "path": str(case.path),
        "damage": [item.what for item in case.damage],
        "why_not": _why_not(case),
    }


def _why_not(case: Case) -> str | None:
    if case.can_be_mended:
        return None
    if not case.copies:
        return "no other copy was given; --from names one"
    if case.manifest is None:
        return "no copy has a manifest that fits"
    return f"no copy has all of {', '.join(case.missing)}"


def _print_text(report: dict[str, Any], dry_run: bool) -> None:
    would = "would be " if dry_run else ""
    print(f"{len(report['whole'])} checkpoints are whole")
    for item in report["mended"]:
        print(f"step {item['step']} {would}mended; it was damaged: {'; '.join(item['damage'][:3])}")
    for item in report["moved_aside"]:
        kept = f" to {item['kept_as']}" if item["kept_as"] else ""
        print(f"step {item['step']} {would}moved aside{kept}: {'; '.join(item['damage'][:3])} ({item['why_not']})")
    if report["dead_attempts"]:
        print(f"{len(report['dead_attempts'])} dead attempts {would}removed: {', '.join(report['dead_attempts'])}")
