"""``elastates ckpt``: look at checkpoints, check, compare, repair, convert and prune them.

A thin layer: what commands do is done by the reader, by ``datastates.convert`` and by the modules beside this one.

Exit status:
    0    done; nothing is damaged, nothing differs
    1    wrong usage, or another error; a message says which
    2    damage was found
    3    the two checkpoints differ
    4    a job is writing to the directory
    130  interrupted
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from datastates.errors import DamagedCheckpointError, DataStatesError, DirectoryBusyError

OK, ERROR, DAMAGED, DIFFERENT, BUSY, INTERRUPTED = 0, 1, 2, 3, 4, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    try:
        words = list(sys.argv[1:] if arguments is None else arguments)
        options = _parser(next((word for word in words if not word.startswith("-")), None)).parse_args(words)
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except _UsageError as error:
        return _complain(error, ERROR)
    except SystemExit as stop:  # --help
        return ERROR if stop.code else OK
    except KeyboardInterrupt:
        return _complain(KeyboardInterrupt("interrupted"), INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except DirectoryBusyError as error:
        return _complain(error, BUSY)
    except DamagedCheckpointError as error:
        return _complain(error, DAMAGED)
    except (DataStatesError, ValueError, TypeError, OSError, ImportError) as error:
        return _complain(error, ERROR)


def _complain(error: BaseException, status: int) -> int:
    sys.stdout.flush()
    print(f"elastates ckpt: {error}", file=sys.stderr)
    return status


class _UsageError(Exception):
    pass


class _Parser(argparse.ArgumentParser):
    """Exits with 1 where argparse would exit with 2, which means damage here."""

    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message}\n{self.format_usage().rstrip()}")


COMMANDS = {
    "ls": ("ls", "list the checkpoints of a directory"),
    "show": ("show", "draw where the bytes of a checkpoint are"),
    "verify": ("verify", "read everything and compare it with the checksums"),
    "diff": ("diff", "compare two checkpoints"),
    "repair": ("repair", "mend damaged checkpoints, or move them aside"),
    "export": ("export", "write a checkpoint in another format"),
    "import": ("importing", "make a checkpoint from another format"),
    "archive": ("archive", "write a checkpoint as compressed Zarr"),
    "unarchive": ("unarchive", "write an archive as a checkpoint again"),
    "prune": ("prune", "remove old checkpoints"),
}
"""Name -> (module of this package, with ``add_arguments(parser)``; what it is about). The module, and torch with it, is
imported when the command is used."""


def _parser(wanted: str | None) -> argparse.ArgumentParser:
    """A parser that knows the names of all commands and the arguments of the wanted one."""
    about, _, statuses = (__doc__ or "").partition("Exit status:")
    parser = _Parser(
        prog="elastates ckpt",
        description=about.splitlines()[0],
        epilog=f"exit status:{statuses}\n'elastates ckpt COMMAND --help' explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (module, about) in COMMANDS.items():
        command = commands.add_parser(name, help=about, add_help=name == wanted)
        if name == wanted:
            importlib.import_module(f"datastates.cli.{module}").add_arguments(command)
    return parser
