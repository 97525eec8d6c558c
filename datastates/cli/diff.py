"""``elastates ckpt diff``."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from datastates import cli
from datastates.cli.compare import PythonDifference, TensorDifference, python_differences, tensor_differences
from datastates.cli.location import location
from datastates.cli.output import Progress, print_json, table
from datastates.reader import open_checkpoint

MAX_SHOWN = 20
MAX_VALUE_LENGTH = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Compare names, shapes, element types and values of tensors, bit by bit, and the Python state. "
        "Exit status 3 if anything differs."
    )
    parser.add_argument("a", type=location, help="a checkpoint, or a directory of checkpoints: its newest whole one")
    parser.add_argument("b", type=location, help="the other")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="tensors like model.*; may be repeated"
    )
    parser.add_argument("--all", action="store_true", help=f"print all differences, not only {MAX_SHOWN} of each kind")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compare and print."""
    a, b = open_checkpoint(options.a), open_checkpoint(options.b)
    with Progress("diff") as progress:
        tensors = list(tensor_differences(a, b, options.only, progress))
    python = [] if options.only else list(python_differences(a, b))
    ranks = (a.manifest.num_ranks, b.manifest.num_ranks)
    ties = (dict(a.manifest.aliases), dict(b.manifest.aliases))
    tied_differently = sorted(name for name in {**ties[0], **ties[1]} if ties[0].get(name) != ties[1].get(name))
    if options.json:
        print_json(
            {
                "a": str(a.path),
                "b": str(b.path),
                "ranks": ranks,
                "tensors": [asdict(item) for item in tensors],
                "tied_differently": tied_differently,
                "python": [asdict(item) for item in python],
            }
        )
    else:
        print(f"A {a.path}\nB {b.path}")
        limit = None if options.all else MAX_SHOWN
        _print_tensors(tensors, limit)
        _print_python(python, limit)
        if tied_differently:
            print(f"tied differently: {', '.join(tied_differently)}")
        if ranks[0] != ranks[1]:
            print(f"saved by {ranks[0]} and {ranks[1]} ranks; Python state was compared for those that both have")
        if not (tensors or python or tied_differently):
            print("no differences")
    return cli.DIFFERENT if tensors or python or tied_differently else cli.OK


def _print_tensors(found: list[TensorDifference], limit: int | None) -> None:
    rows = []
    for item in found[:limit]:
        if item.what == "values":
            odd = f", {item.num_not_finite} not finite" if item.num_not_finite else ""
            changed = f"{item.num_changed:,} of {item.num_elements:,}"
            rows.append([item.name, item.a or "", changed, f"{item.max_abs:.3g}{odd}"])
        else:
            rows.append([item.name, " -> ".join(text for text in (item.a, item.b) if text), item.what, ""])
    if rows:
        print(table(("tensor", "type", "changed", "max |A - B|"), rows))
    _print_more("tensors", len(found), len(rows))


def _print_python(found: list[PythonDifference], limit: int | None) -> None:
    rows = [[str(item.rank), item.path, _short(item.a), _short(item.b)] for item in found[:limit]]
    if rows:
        print(table(("rank", "Python value", "A", "B"), rows))
    _print_more("Python values", len(found), len(rows))


def _print_more(what: str, count: int, shown: int) -> None:
    if count > shown:
        print(f"and {count - shown} more {what} that differ; --all prints them")


def _short(text: str | None) -> str:
    if text is None:
        return "-"
    return text if len(text) <= MAX_VALUE_LENGTH else text[: MAX_VALUE_LENGTH - 3] + "..."
