"""How ranks tell each other values and failures, and files their readers: compact JSON, and an error in one line."""

from __future__ import annotations

import json
from typing import Any


def json_bytes(value: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


def error_text(error: BaseException) -> str:
    """A failure of this rank, for the others to see."""
    return f"{type(error).__name__}: {error}"
