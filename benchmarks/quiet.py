"""Libraries log and warn about every checkpoint, which would bury the figures."""

from __future__ import annotations

import logging
import warnings


def quiet_libraries() -> None:
    """Errors only, in this process; DCP's writer process sets up its own log."""
    logging.getLogger("torch_checkpointing").setLevel(logging.ERROR)
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
    for module in ("torch", "torchsnapshot", "torch_checkpointing"):
        warnings.filterwarnings("ignore", module=rf"{module}(\..*)?")
