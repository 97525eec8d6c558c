"""``torch.save``: what most training scripts do."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.contenders.base import Pending
from benchmarks.contenders.peer import Peer, SyncedAfterwards
from benchmarks.workload import flat_tensors


class TorchSave(Peer):
    """One pickle per checkpoint, loaded by mapping it, which spares a copy."""

    name = "torch_save"

    def save(self, step: int) -> Pending:
        """Blocks until the file is in the page cache."""
        path = self.path_of(step)
        path.mkdir(parents=True)
        torch.save(self.state_dict, path / "state.pt")
        return SyncedAfterwards(path)

    @torch.no_grad()
    def restore(self, step: int) -> dict[str, Any]:
        """Map the file and copy out of it."""
        loaded = torch.load(self.path_of(step) / "state.pt", mmap=True, weights_only=True)
        stored = flat_tensors(loaded)
        for name, tensor in self.state.tensors.items():
            tensor.copy_(stored[name])
        return loaded["progress"]

    def settings(self) -> dict[str, Any]:
        """How it loads."""
        return {"load": "mmap=True, weights_only=True"}
