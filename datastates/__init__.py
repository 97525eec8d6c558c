"""Lazy asynchronous checkpoints of PyTorch training state.

checkpoints = datastates.Checkpointer("runs/gpt")
state = {"model": model, "optimizer": optimizer, "rng": datastates.rng_state()}
start = checkpoints.restore(state)
for step in range(start, 1000):
    loss_of(batch).backward(); optimizer.step()
    checkpoints.checkpoint(step, state)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datastates.checkpointer import Checkpointer
    from datastates.config import CheckpointerConfig, CheckpointStats
    from datastates.errors import (
        ArenaExhaustedError,
        CheckpointError,
        CheckpointSkipped,
        CoordinationError,
        DamagedCheckpointError,
        DataStatesError,
        DirectoryBusyError,
        MutationError,
        NotOneDirectoryError,
        ReplicationError,
        RestoreError,
        StorageFullError,
    )
    from datastates.futures import CheckpointFuture
    from datastates.handle import Checkpoint
    from datastates.integrations import dcp_reader, dcp_writer
    from datastates.providers import (
        ChunkedState,
        CompositeProvider,
        StateProvider,
        dali_iterator,
        dali_pipeline,
        register_provider,
        rng_state,
    )
    from datastates.providers.per_rank import per_rank
    from datastates.reader import CheckpointReader, Damage, open_checkpoint
    from datastates.tiers.config import Tier
    from datastates.typed_json import pickled
    from datastates.zarr import archive, open_archive, restore_archive, unarchive, zarr_store

__all__ = [
    "ArenaExhaustedError",
    "Checkpoint",
    "CheckpointError",
    "CheckpointFuture",
    "CheckpointReader",
    "CheckpointSkipped",
    "CheckpointStats",
    "Checkpointer",
    "CheckpointerConfig",
    "ChunkedState",
    "CompositeProvider",
    "CoordinationError",
    "Damage",
    "DamagedCheckpointError",
    "DataStatesError",
    "DirectoryBusyError",
    "MutationError",
    "NotOneDirectoryError",
    "ReplicationError",
    "RestoreError",
    "StateProvider",
    "StorageFullError",
    "Tier",
    "archive",
    "dali_iterator",
    "dali_pipeline",
    "dcp_reader",
    "dcp_writer",
    "open_archive",
    "open_checkpoint",
    "per_rank",
    "pickled",
    "register_provider",
    "restore_archive",
    "rng_state",
    "unarchive",
    "zarr_store",
]

_HOMES = {
    name: module
    for module, names in {
        "datastates.checkpointer": ("Checkpointer",),
        "datastates.config": ("CheckpointStats", "CheckpointerConfig"),
        "datastates.errors": (
            "ArenaExhaustedError",
            "CheckpointError",
            "CheckpointSkipped",
            "CoordinationError",
            "DamagedCheckpointError",
            "DataStatesError",
            "DirectoryBusyError",
            "MutationError",
            "NotOneDirectoryError",
            "ReplicationError",
            "RestoreError",
            "StorageFullError",
        ),
        "datastates.futures": ("CheckpointFuture",),
        "datastates.handle": ("Checkpoint",),
        "datastates.integrations": ("dcp_reader", "dcp_writer"),
        "datastates.providers": (
            "ChunkedState",
            "CompositeProvider",
            "StateProvider",
            "dali_iterator",
            "dali_pipeline",
            "per_rank",
            "register_provider",
            "rng_state",
        ),
        "datastates.reader": ("CheckpointReader", "Damage", "open_checkpoint"),
        "datastates.tiers.config": ("Tier",),
        "datastates.typed_json": ("pickled",),
        "datastates.zarr": ("archive", "open_archive", "restore_archive", "unarchive", "zarr_store"),
    }.items()
    for name in names
}
"""Public name -> the module it is imported from when it is first asked for: importing this package is importing no
torch, which the command line waits for only where it needs it."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        found = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = found
        return found
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = f"{__name__}.{name}"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
