"""SaveJob: a checkpoint on its way through the lanes, and how its failures are told."""

from __future__ import annotations

import errno
import traceback
from dataclasses import dataclass
from pathlib import Path

from datastates.agreement import SavePlan
from datastates.delta import Base
from datastates.errors import CheckpointError, CheckpointSkipped, MutationError, StorageFullError
from datastates.handle import Checkpoint
from datastates.manifest import ObjectsFile

import _elastates


@dataclass
class SaveJob:
    """A checkpoint on its way through the lanes."""

    checkpoint: Checkpoint
    plan: SavePlan | None = None
    attempt: Path | None = None
    base: Base | None = None
    """What the checkpoint is a delta to; pinned for as long as it stands here."""
    error: CheckpointError | None = None
    objects: ObjectsFile | None = None
    reported: bool = False


def forget_frames(error: BaseException | None) -> None:
    """Clear the locals that an error's frames hold: it may be kept for long, and the captured state must not be."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def as_checkpoint_error(checkpoint: Checkpoint, error: Exception, rank: int) -> CheckpointError:
    """``error`` as one that says which checkpoint failed, and where."""
    if isinstance(error, CheckpointSkipped | MutationError):
        return error
    text = f"{error.args[1]} ({error.args[0]})" if isinstance(error, _elastates.StatusError) else str(error)
    full = isinstance(error, _elastates.StatusError) and error.args[0] in ("no_space", "quota_exceeded")
    full = full or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT))
    kind = StorageFullError if full else type(error) if isinstance(error, CheckpointError) else CheckpointError
    prefix = f"checkpoint of step {checkpoint.step} on rank {rank}: "
    if text.startswith(prefix) or (isinstance(error, kind) and text.startswith("checkpoint of step")):
        return error  # type: ignore[return-value]
    told = text if isinstance(error, CheckpointError | _elastates.StatusError) else f"{type(error).__name__}: {text}"
    wrapped = kind(f"{prefix}{told}")
    wrapped.__cause__ = error
    return wrapped
