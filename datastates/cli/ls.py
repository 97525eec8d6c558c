"""``elastates ckpt ls``. Imports no torch until there is something to list."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

from datastates import cli
from datastates.cli.location import location
from datastates.cli.output import age_text, print_json, size_text, table


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


@dataclass(frozen=True)
class Contents:
    """What a directory of checkpoints holds."""

    listed: list[Listed]
    leftovers: list[str]
    """Attempts: a live writer's, if there is one, else a dead one's."""
    aside: list[str]
    """Checkpoints that were found damaged."""
    holder: str | None
    """Who writes there."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "List checkpoints: size, age, ranks, and whether manifest, headers and file sizes are as written; "
        "'verify' also reads the data. Exit status 2 if one is damaged."
    )
    parser.add_argument("path", type=location, help="a directory of checkpoints, or its URL")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the list."""
    found = contents_of(options.path)
    if options.json:
        print_json(
            {
                "path": str(options.path),
                "checkpoints": [asdict(item) for item in found.listed],
                "dead_attempts": found.leftovers if found.holder is None else [],
                "attempts": found.leftovers if found.holder is not None else [],
                "set_aside": found.aside,
                "written_by": found.holder,
            }
        )
    else:
        _print_text(options.path, found)
    return cli.DAMAGED if any(item.problem for item in found.listed) else cli.OK


def contents_of(place: Path | str) -> Contents:
    """What there is.

    Raises:
        FileNotFoundError: no directory.
    """
    if isinstance(place, Path):
        if not place.is_dir():
            raise FileNotFoundError(f"{place} is no directory")
        if not any(place.iterdir()):
            return Contents([], [], [], None)
    from datastates.cli import listing  # torch takes a second to import

    return listing.of_url(place) if isinstance(place, str) else listing.of_directory(place)


def _print_text(path: Path | str, found: Contents) -> None:
    if found.listed:
        rows = [
            [
                str(item.step),
                size_text(item.size_bytes),
                age_text(item.age_s),
                str(item.num_ranks or "?"),
                str(item.num_tensors or "?"),
                item.state,
            ]
            for item in found.listed
        ]
        print(table(("step", "size", "age", "ranks", "tensors", "state"), rows, right=(0, 1, 2, 3, 4)))
    else:
        print(f"no checkpoints in {path}")
    for item in found.listed:
        if item.problem:
            print(f"damaged: {item.problem}")
    if found.holder is not None:
        print(f"being written by {found.holder}")
    elif found.leftovers:
        print(f"{len(found.leftovers)} dead attempts, which the next job or 'repair' removes")
    if found.aside:
        print(f"{len(found.aside)} damaged checkpoints set aside: {', '.join(found.aside)}")
