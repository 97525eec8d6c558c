"""A spare: imports what takes long, waits, and becomes the rank that its agent names.

python -m elaswave.launcher.spare [--module] SCRIPT ...      (started by the agent, not by hand)
"""

from __future__ import annotations

import argparse
import importlib
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elaswave import agent_link

WARM_MODULES = ("torch", "torch.distributed", "elaswave")


def main(arguments: Sequence[str] | None = None) -> None:
    """Wait for a place, then run the script as if it had been started there. Ends with its agent."""
    parser = argparse.ArgumentParser(prog="python -m elaswave.launcher.spare", allow_abbrev=False)
    parser.add_argument("--module", action="store_true")
    parser.add_argument("script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    words = parser.parse_args(arguments)
    link = agent_link.of_process()
    if link is None:
        parser.error("ELASWAVE_AGENT is not set: spares are started by elastates run")
    for name in WARM_MODULES:
        importlib.import_module(name)
    promotion = link.wait_for_promotion()
    if promotion is not None:
        take_place(promotion)
        run_script(words.script, words.arguments, is_module=words.module)


def take_place(promotion: dict[str, Any]) -> None:
    """The rank's environment and its log files, in place of those that the spare was started with."""
    os.environ.update(promotion["env"])
    for name, fd in (("out", 1), ("err", 2)):
        if path := promotion[name]:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            os.dup2(file, fd)
            os.close(file)


def run_script(script: str, arguments: Sequence[str], *, is_module: bool) -> None:
    """As ``python script ...`` or ``python -m script ...`` would."""
    sys.argv = [script, *arguments]
    if is_module:
        sys.path.insert(0, os.getcwd())
        runpy.run_module(script, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(script).resolve().parent))
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
