"""The command line: ``elastates GROUP COMMAND``. A group's code, and torch with it, is imported when it is used."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

GROUPS = {
    "chaos": ("elaswave.chaos", "strike the ranks of a running job, and report what became of it"),
    "ckpt": ("datastates.cli", "checkpoints: list, show, verify, compare, repair, convert and prune them"),
    "run": ("elaswave.launcher", "run a script on every rank; the ranks that live go on when others die"),
}
"""Name -> (module with ``main(arguments) -> exit status``, what it is about)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in GROUPS:
        status: int = importlib.import_module(GROUPS[words[0]][0]).main(words[1:])
        return status
    parser = argparse.ArgumentParser(
        prog="elastates",
        description="Checkpoints at every step that are not felt, and training that survives its ranks.",
        epilog="'elastates GROUP --help' lists the commands of a group.",
    )
    groups = parser.add_subparsers(title="groups", metavar="GROUP", required=True)
    for name, (_, about) in GROUPS.items():
        groups.add_parser(name, help=about, add_help=False)
    try:
        parser.parse_args(words)
    except SystemExit as stop:
        return 1 if stop.code else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
