"""The checkpoint libraries that are compared, by the name each has in the report."""

from __future__ import annotations

import importlib
from pathlib import Path

from benchmarks.contenders.base import Contender
from benchmarks.workload import State

OURS = "ours"

# Imported when used: each needs packages that the others do not.
_CLASSES = {
    "torch_save": "torch_save.TorchSave",
    "safetensors": "safetensors_file.SafetensorsFile",
    "dcp_sync": "dcp.DcpSync",
    "dcp_async_thread": "dcp.DcpAsyncThread",
    "dcp_async_process": "dcp.DcpAsyncProcess",
    "torch_checkpointing": "torch_checkpointing_manager.TorchCheckpointing",
    "torchsnapshot": "torchsnapshot_async.TorchsnapshotAsync",
    OURS: "ours.Ours",
}
NAMES = tuple(_CLASSES)
DCP_NAMES = ("dcp_sync", "dcp_async_thread", "dcp_async_process")


def create(name: str, state: State, root: Path, arena_mb: int | None = None) -> Contender:
    """Make one contender, unopened. Raises ImportError where its library is missing."""
    module_name, class_name = _CLASSES[name].split(".")
    module = importlib.import_module(f"benchmarks.contenders.{module_name}")
    contender: Contender = getattr(module, class_name)(state, root, arena_mb)
    return contender
