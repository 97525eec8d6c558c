"""Other libraries' trials, each a script that a Python of its own runs, since they need another torch than ours."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.spread import spread

HERE = Path(__file__).resolve().parent
WAIT_S = 240.0


class Peer:
    """A script beside this module that prints one trial's rows as JSON, and with ``--check`` says whether it can."""

    def __init__(self, python: str, script: str, *arguments: object) -> None:
        self._command = [python, str(HERE / script), *map(str, arguments)]
        self.rows: list[dict[str, float]] = []
        self.failures: list[str] = []
        self.why_not = self._run("--check")[1]
        """why it cannot be measured here; empty if it can"""

    def trial(self) -> None:
        """Measure once; why that failed, if it did, is kept."""
        output, why = self._run()
        if why:
            self.failures.append(why)
            return
        told = json.loads(output)
        self.rows += told if isinstance(told, list) else [told]

    def report(self, names: Sequence[str]) -> dict[str, Any]:
        """The spread of these figures, and every row; or why there are none."""
        if self.why_not:
            return {"not_measured": self.why_not}
        found: dict[str, Any] = {}
        for name in names if self.rows else ():
            figures = spread([row[name] for row in self.rows])
            found |= {f"{name}_median": figures["median"], f"{name}_p95": figures["p95"]}
        return {**found, "failed_trials": self.failures, "rows": self.rows}

    def _run(self, *arguments: str) -> tuple[str, str]:
        """What it printed; and why it failed, empty if it did not."""
        command = [*self._command, *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return "", str(error)
        last_line = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return done.stdout, last_line if done.returncode else ""
