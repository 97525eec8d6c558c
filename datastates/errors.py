"""Everything this package raises, apart from ``ValueError`` and ``TypeError`` for bad arguments."""

from __future__ import annotations


class DataStatesError(Exception):
    """Base of all errors of this package."""


class CheckpointError(DataStatesError):
    """A checkpoint failed and was not published; the message names the step, the ranks and the reason."""


class MutationError(CheckpointError):
    """Captured state was written to before it had been copied; the message names the tensors."""


class ArenaExhaustedError(CheckpointError):
    """``policy="error"`` and the arena had no room for a further checkpoint."""


class CheckpointSkipped(CheckpointError):
    """``policy="skip"`` and some rank had no room: nobody took this checkpoint."""


class CoordinationError(CheckpointError):
    """Ranks did not answer within the deadline, or asked for different things; the message names them."""


class StorageFullError(CheckpointError):
    """The file system lacks the space (or quota) for a checkpoint."""


class ReplicationError(CheckpointError):
    """A published checkpoint could not be copied to a tier; it is whole where it was published."""


class DamagedCheckpointError(DataStatesError):
    """Bytes on disk are not the bytes that were written; the message names file, range and tensors."""


class RestoreError(DataStatesError):
    """No checkpoint could be restored; the live state may be half overwritten and must not be trained."""


class DirectoryBusyError(DataStatesError):
    """Another job is writing checkpoints to the same directory."""


class NotOneDirectoryError(DataStatesError):
    """The ranks do not see one common checkpoint directory; the message names those that do not."""
