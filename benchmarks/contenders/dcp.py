"""``torch.distributed.checkpoint``: synchronous, asynchronous in a thread, asynchronous in a process."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import AsyncStager, DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from benchmarks.contenders.base import IO_THREADS, Pending
from benchmarks.contenders.peer import Peer, SyncedAfterwards


class DcpSync(Peer):
    """``dcp.save`` in the caller. All three load with ``dcp.load``, in place."""

    name = "dcp_sync"

    def open(self) -> None:
        """Join a group of one, as every DCP job has a group."""
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def save(self, step: int) -> Pending:
        """Blocks until the library has written and synced its files."""
        path = self.path_of(step)
        dcp.save(self.state_dict, storage_writer=dcp.FileSystemWriter(path, thread_count=IO_THREADS))
        return SyncedAfterwards(path)

    def restore(self, step: int) -> dict[str, Any]:
        """In place; the live Python state is left alone."""
        target = {**self.state_dict, "progress": dict(self.state_dict["progress"])}
        dcp.load(target, checkpoint_id=self.path_of(step))
        return target["progress"]

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()

    def settings(self) -> dict[str, Any]:
        """Writer threads."""
        return {"writer_threads": IO_THREADS}


class DcpAsyncThread(DcpSync):
    """``dcp.async_save`` into cached buffers from a staging thread: its shortest stall here, not its default."""

    name = "dcp_async_thread"
    kind = AsyncCheckpointerType.THREAD
    shared_memory = False

    def open(self) -> None:
        """Make the one stager that a job keeps."""
        super().open()
        self._stager: AsyncStager = DefaultStager(
            StagingOptions(
                use_pinned_memory=False,  # needs an accelerator
                use_shared_memory=self.shared_memory,
                use_async_staging=True,
                use_non_blocking_copy=False,  # needs an accelerator
            )
        )

    def save(self, step: int) -> Pending:
        """Returns while the staging thread copies."""
        path = self.path_of(step)
        response: Any = dcp.async_save(
            self.state_dict,
            storage_writer=dcp.FileSystemWriter(path, thread_count=IO_THREADS),
            async_checkpointer_type=self.kind,
            async_stager=self._stager,
        )
        return SyncedAfterwards(path, response.staging_completion.result, response.upload_completion.result)

    def close(self) -> None:
        """Free the staging buffers."""
        self._stager.close()
        super().close()

    def settings(self) -> dict[str, Any]:
        """How it stages."""
        return {**super().settings(), "staging": "asynchronous, cached", "shared_memory": self.shared_memory}


class DcpAsyncProcess(DcpAsyncThread):
    """The same with a writer process, which reads the staged tensors from shared memory."""

    name = "dcp_async_process"
    kind = AsyncCheckpointerType.PROCESS
    shared_memory = True

    def close(self) -> None:
        """End the writer process too: the library keeps it in a module variable for the life of the program."""
        super().close()
        from torch.distributed.checkpoint import _async_process_executor as executor

        executor._CHECKPOINT_PROCESS = None
