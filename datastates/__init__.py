"""Lazy asynchronous checkpoints of PyTorch training state.

checkpoints = datastates.Checkpointer("runs/gpt")
state = {"model": model, "optimizer": optimizer, "rng": datastates.rng_state()}
start = checkpoints.restore(state)
for step in range(start, 1000):
    loss_of(batch).backward(); optimizer.step()
    checkpoints.checkpoint(step, state)
"""

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
    per_rank,
    register_provider,
    rng_state,
)
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
