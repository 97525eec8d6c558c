"""States for tests of tiers."""

from typing import Any

import torch


def filled(value: float, width: int = 64) -> dict[str, Any]:
    """A state that tells which step it is of."""
    return {"weight": torch.full((width, width), float(value)), "python": {"value": value}}
