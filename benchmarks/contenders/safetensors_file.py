"""The safetensors library: one file of tensors, Python state as JSON beside it."""

from __future__ import annotations

import json
from typing import Any

import torch

from benchmarks.contenders.base import Pending
from benchmarks.contenders.peer import Peer, SyncedAfterwards


class SafetensorsFile(Peer):
    """Blocks until the file is in the page cache."""

    name = "safetensors"

    def open(self) -> None:
        """Import it."""
        import safetensors
        import safetensors.torch

        self._library = safetensors

    def save(self, step: int) -> Pending:
        """Write both files in the caller."""
        path = self.path_of(step)
        path.mkdir(parents=True)
        tensors = {name: tensor.detach() for name, tensor in self.state.tensors.items()}
        self._library.torch.save_file(tensors, path / "state.safetensors")
        (path / "progress.json").write_text(json.dumps(self.state_dict["progress"]))
        return SyncedAfterwards(path)

    @torch.no_grad()
    def restore(self, step: int) -> dict[str, Any]:
        """Copy tensor by tensor out of the mapped file."""
        path = self.path_of(step)
        with self._library.safe_open(path / "state.safetensors", framework="pt") as stored:
            for name, tensor in self.state.tensors.items():
                tensor.copy_(stored.get_tensor(name))
        return json.loads((path / "progress.json").read_text())
