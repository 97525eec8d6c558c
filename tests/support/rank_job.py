"""What the processes of a test have in common that meet over a file: who they are, and how they report to the test."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def own_rank() -> int:
    """The number that the launcher gave to this process."""
    return int(os.environ.get("RANK", "0"))


def num_ranks() -> int:
    """How many it started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def meet(store: str | Path) -> None:
    """Join the others over a file, so that no port can be taken by somebody else; one thread each."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=own_rank(), world_size=num_ranks())


def result(name: str, value: Any) -> None:
    """Print ``RESULT name json``, which the test waits for."""
    print("RESULT", name, json.dumps(value), flush=True)


def told(act: Callable[[], Any]) -> str:
    """The error that ``act`` raises, as text; empty if it raises none."""
    try:
        act()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001  (that of torch.distributed.checkpoint is no Exception)
        return f"{type(error).__name__}: {error}"
    return ""
