"""``torch_checkpointing``: Meta's newer library, asynchronous through a writer process."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders.base import IO_THREADS, Pending
from benchmarks.contenders.peer import Peer, SyncedAfterwards


class TorchCheckpointing(Peer):
    """Its default asynchronous manager without O_DIRECT, which its 0.1.1 cannot finish on ext4 (EINVAL at close)."""

    name = "torch_checkpointing"

    def open(self) -> None:
        """Start the manager; its writer process starts with the first save."""
        from torch_checkpointing import CheckpointManager
        from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

        config = CheckpointManager.Config.with_async_save()
        config.storage_config = LocalFileSystemStorageConfig(use_direct_io=False)
        config.save.writer_config.file_write_max_threads = IO_THREADS
        self._manager = config.build()

    def save(self, step: int) -> Pending:
        """Returns while a thread stages; its lock is what an optimizer would wait for."""
        path = self.path_of(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        written: Any = self._manager.save(str(path), self.state_dict)
        return SyncedAfterwards(path, self._wait_staged, written.result)

    def restore(self, step: int) -> dict[str, Any]:
        """In place; the live Python state is left alone."""
        target = {**self.state_dict, "progress": dict(self.state_dict["progress"])}
        return self._manager.load(str(self.path_of(step)), into=target)["progress"]

    def close(self) -> None:
        """End the writer process."""
        self._manager.close()

    def settings(self) -> dict[str, Any]:
        """Writer threads and what had to be turned off."""
        return {"writer_threads": IO_THREADS, "use_direct_io": False}

    def _wait_staged(self) -> None:
        with self._manager.lock():
            pass
