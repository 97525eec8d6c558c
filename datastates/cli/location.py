"""What commands take for a place: a path, or, where they only read, a URL."""

from __future__ import annotations

import argparse
from pathlib import Path
from urllib.parse import unquote, urlsplit


def location(text: str) -> Path | str:
    """A path, or a URL as it is: a ``Path`` of one would lose a slash."""
    if text.startswith("file://"):
        return Path(unquote(urlsplit(text).path))
    return text if "://" in text else Path(text)


def local_path(text: str) -> Path:
    """A path of this machine.

    Raises:
        argparse.ArgumentTypeError: a URL; says so.
    """
    found = location(text)
    if isinstance(found, Path):
        return found
    raise argparse.ArgumentTypeError(f"{text} is a URL, and this works on directories of this machine")
