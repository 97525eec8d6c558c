"""DTensor and FSDP2 on one rank; ``test_fsdp2_reshard.py`` has the many."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conformance import ProviderConformance
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor


@pytest.fixture(autouse=True, scope="module")
def _group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of this rank's part: always the same object, which ``to_local()`` is not."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


class TestDTensor(ProviderConformance):
    def make(self, seed: int) -> dict[str, Any]:
        mesh = init_device_mesh("cpu", (1,))
        torch.manual_seed(seed)
        rows, same = (distribute_tensor(torch.randn(5, 3), mesh, [kind]) for kind in (Shard(0), Replicate()))
        return {"rows": rows, "nested": {"same": [same]}, "plain": torch.randn(2)}

    def change(self, state: dict[str, Any]) -> None:
        for tensor in (state["rows"], state["nested"]["same"][0], state["plain"]):
            tensor.mul_(0.5)

    def content(self, state: dict[str, Any]) -> Any:
        assert all(isinstance(tensor, DTensor) for tensor in (state["rows"], state["nested"]["same"][0]))
        return [local(state["rows"]), local(state["nested"]["same"][0]), state["plain"]]


class TestFsdp2(ProviderConformance):
    def make(self, seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
        for layer in (model[0], model[2], model):
            fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
        return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01)}

    def change(self, state: dict[str, Any]) -> None:
        state["model"](torch.ones(2, 6)).square().mean().backward()
        state["optimizer"].step()
        state["optimizer"].zero_grad()

    def content(self, state: dict[str, Any]) -> Any:
        parameters = list(state["model"].parameters())
        states = [state["optimizer"].state.get(p, {}) for p in parameters]
        return [list(map(local, parameters)), [{key: local(t) for key, t in items.items()} for items in states]]
