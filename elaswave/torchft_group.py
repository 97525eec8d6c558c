"""Our group where torchft expects one of its own: its Manager decides who is in it, ``reconfigure()`` makes it so.

    manager = torchft.Manager(pg=TorchftGroup(timeout=timedelta(seconds=30)), ...)

Needs torch 2.15, torchft, and the same ``ELASWAVE_JOB`` and ``ELASWAVE_SECRET`` in all replicas, which have no store in
common when they start. Links to those who stay are kept from one quorum to the next; whoever waits for a dead replica
is told by its broken links, and torchft throws the step away.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist

from elaswave.backend import start_endpoint
from elaswave.errors import ElasWaveError
from elaswave.reconfigure import awaiting_group

try:
    from torchft.process_group import ProcessGroupWrapper, create_store_client
except ImportError as error:
    raise ImportError(f"torchft cannot be imported ({error}): pip install torchft") from error


class TorchftGroup(ProcessGroupWrapper):
    """A replica's side of the group of all replicas; torchft's Manager calls everything."""

    def __init__(self, timeout: timedelta = timedelta(seconds=60), name: str = "torchft") -> None:
        """Makes no connection yet.

        Args:
            timeout: of meeting the others of a quorum, and of operations.
            name: the same in all replicas; another one for each group of a process.

        Raises:
            ElasWaveError: this torch lacks ``reconfigure``, or the environment does not say which job this is.
        """
        if not hasattr(dist, "_reconfigure"):
            raise ElasWaveError("torchft can drive backend 'elastic' on torch 2.15 and later, which have reconfigure()")
        start_endpoint()
        super().__init__(timeout)
        self._pg: Any = None  # torchft's name for what does the work
        self._name = name

    def configure(
        self, store_addr: str, replica_id: str, rank: int, world_size: int, quorum_id: int | None = None, *_: Any
    ) -> None:
        """Take up the members of a new quorum. Collective of those; the store is of this quorum alone.

        Raises:
            RuntimeError: one of them did not come within the timeout; the Manager asks for another quorum then.
        """
        store = create_store_client(store_addr, timeout=self._timeout)
        if self._pg is None:
            self._pg = awaiting_group(store, self._name, rank, world_size, self._timeout.total_seconds())
        store.set(f"elastic/{rank}", self._pg.get_reconfigure_handle())
        handles = [store.get(f"elastic/{other}").decode() for other in range(world_size)]
        torch_dist: Any = dist  # torch 2.13, by which types are checked, has no such thing
        torch_dist._reconfigure(quorum_id, handles, self._pg, self._timeout).wait()

    def abort(self, errored: bool = True) -> None:
        """Fail what is pending; the next quorum takes the group up again."""
        if self._pg is not None:
            self._pg.abort()

    def getBackendName(self) -> str:
        """As in ``init_process_group``."""
        return "elastic"
