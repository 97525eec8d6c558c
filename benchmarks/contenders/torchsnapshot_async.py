"""``torchsnapshot``: ``Snapshot.async_take``."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders.base import Pending
from benchmarks.contenders.peer import Peer, SyncedAfterwards


class TorchsnapshotAsync(Peer):
    """Blocks until the state is staged, then writes from a thread. Its writer threads cannot be chosen."""

    name = "torchsnapshot"

    def open(self) -> None:
        """Import it."""
        import torchsnapshot

        self._library = torchsnapshot

    def save(self, step: int) -> Pending:
        """Stage in the caller."""
        path = self.path_of(step)
        pending = self._library.Snapshot.async_take(str(path), self._app_state())
        return SyncedAfterwards(path, None, pending.wait)

    def restore(self, step: int) -> dict[str, Any]:
        """In place; the live Python state is left alone."""
        target = self._app_state()
        self._library.Snapshot(str(self.path_of(step))).restore(target)
        return dict(target["progress"].data)

    def _app_state(self) -> dict[str, Any]:
        return {key: self._library.StateDict(**value) for key, value in self.state_dict.items()}
