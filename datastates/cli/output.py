"""What commands print: sizes, ages, tables, bars, JSON, and progress where somebody is watching."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

BAR_WIDTH = 24
_UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))
_AGES = (("d", 86_400), ("h", 3600), ("min", 60))
_REFRESH_S = 0.1


def size_text(size_bytes: float) -> str:
    """``1_020_000`` -> ``"1.02 MB"``; units are powers of 1000."""
    for unit, factor in _UNITS:
        if size_bytes >= factor:
            return (
                f"{size_bytes / factor:.3g} {unit}"
                if size_bytes < 999.5 * factor
                else f"{size_bytes / factor:.0f} {unit}"
            )
    return f"{size_bytes:.0f} B"


def size_of(text: str) -> int:
    """``"5GB"`` -> bytes; the inverse of :func:`size_text`.

    Raises:
        ValueError: no size.
    """
    number = text.strip().upper().removesuffix("B").strip()
    factor = {"T": 10**12, "G": 10**9, "M": 10**6, "K": 10**3}.get(number[-1:], 1)
    size = float(number.rstrip("TGMK")) * factor
    size_bytes = int(size) if math.isfinite(size) else 0
    if size_bytes < 1:
        raise ValueError(f"{text!r} is no size; write for example 5GB")
    return size_bytes


def age_text(seconds: float) -> str:
    """``7300`` -> ``"2 h"``."""
    for unit, factor in _AGES:
        if seconds >= factor:
            return f"{seconds / factor:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns under a header; those in ``right`` are aligned to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def bar(part: float, whole: float) -> str:
    """A bar as long as the share that ``part`` is of ``whole``."""
    eighths = round(8 * BAR_WIDTH * part / whole) if whole else 0
    return "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")


def print_json(document: Any) -> None:
    """The document that ``--json`` asks for."""
    json.dump(document, sys.stdout, indent=1, default=str)
    sys.stdout.write("\n")


class Progress:
    """A line on standard error that shows how far a command is; only on a terminal."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._begun_s = time.monotonic()
        self._shown_s = 0.0
        self._width = 0
        self._on = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        now_s = time.monotonic()
        if not self._on or (done < total and now_s - self._shown_s < _REFRESH_S):
            return
        self._shown_s = now_s
        speed = done / max(now_s - self._begun_s, 1e-9)
        share = done / total if total else 1.0
        self._print(f"{self._what}: {size_text(done)} of {size_text(total)} ({share:.0%}), {size_text(speed)}/s")

    def clear(self) -> None:
        """Take the line away."""
        if self._width:
            self._print("")
            sys.stderr.write("\r")
            self._width = 0

    def _print(self, text: str) -> None:
        sys.stderr.write("\r" + text.ljust(self._width))
        sys.stderr.flush()
        self._width = len(text)

    def __enter__(self) -> Callable[[int, int], None]:
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()
