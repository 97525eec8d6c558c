"""What a person sees while a benchmark runs: one line per measurement, and no chatter of libraries."""

from __future__ import annotations

import logging
import sys
import warnings


def say(line: str) -> None:
    """Progress, beside the report."""
    print(line, file=sys.stderr, flush=True)


def quiet_libraries() -> None:
    """Errors only, in this process; DCP's writer process sets up its own log."""
    logging.getLogger("torch_checkpointing").setLevel(logging.ERROR)
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
    for module in ("torch", "torchsnapshot", "torch_checkpointing"):
        warnings.filterwarnings("ignore", module=rf"{module}(\..*)?")
