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
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from datastates.errors import DamagedCheckpointError, DataStatesError, DirectoryBusyError

OK, ERROR, DAMAGED, DIFFERENT, BUSY, INTERRUPTED = 0, 1, 2, 3, 4, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    try:
        options = _parser().parse_args(arguments)
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


def _parser() -> argparse.ArgumentParser:
    from datastates.cli import archive, diff, export, importing, ls, prune, repair, show, verify

    about, _, statuses = (__doc__ or "").partition("Exit status:")
    parser = _Parser(
        prog="elastates ckpt",
        description=about.splitlines()[0],
        epilog=f"exit status:{statuses}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (ls, show, verify, diff, repair, export, importing, archive, prune):
        module.add_command(commands)
    return parser
