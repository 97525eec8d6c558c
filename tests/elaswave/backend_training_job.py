"""What the ranks of ``test_backend_training.py`` do: stock programs, with backend gloo and then with elastic.

Nothing differs between the two but the name given to ``init_process_group``. Prints ``RESULT rank json``.
"""

import json
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import elaswave  # noqa: F401  (registers the backend)

RANK, NUM_RANKS = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
NUM_STEPS = 4


def model() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(33, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 5))


def train(net: nn.Module) -> list[float]:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = []
    for step in range(NUM_STEPS):
        generator = torch.Generator().manual_seed(100 * step + RANK)
        loss = net(torch.randn(8, 33, generator=generator)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def ddp() -> list[Tensor]:
    net = DistributedDataParallel(model(), bucket_cap_mb=0.01)  # several buckets
    losses = train(net)
    return [*(parameter.detach() for parameter in net.parameters()), torch.tensor(losses)]


def ddp_with_hook() -> list[Tensor]:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    net = DistributedDataParallel(model())
    net.register_comm_hook(None, allreduce_hook)
    train(net)
    return [parameter.detach() for parameter in net.parameters()]


def fsdp() -> list[Tensor]:
    net = model()
    mesh = init_device_mesh("cpu", (NUM_RANKS,))
    precision = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for layer in (net[0], net[2], net):
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    losses = train(net)
    shards = [parameter.full_tensor().detach() for parameter in net.parameters()]  # type: ignore[attr-defined]
    return [*shards, torch.tensor(losses)]


def hybrid_fsdp() -> list[Tensor]:
    net = fully_shard(model(), mesh=init_device_mesh("cpu", (2, NUM_RANKS // 2), mesh_dim_names=("dp", "shard")))
    train(net)
    return [parameter.full_tensor().detach() for parameter in net.parameters()]  # type: ignore[attr-defined]


def dtensors() -> list[Tensor]:
    mesh = init_device_mesh("cpu", (2, NUM_RANKS // 2), mesh_dim_names=("a", "b"))
    torch.manual_seed(3)
    left, right = torch.randn(9, 12), torch.randn(12, 10)
    product = distribute_tensor(left, mesh, [Shard(0), Shard(1)]) @ distribute_tensor(
        right, mesh, [Replicate(), Shard(0)]
    )
    moved = product.redistribute(mesh, [Shard(1), Shard(0)])
    assert isinstance(moved, DTensor)
    return [product.full_tensor(), moved.full_tensor(), moved.sum().full_tensor()]


def functional() -> list[Tensor]:
    """Operations that resolve the group by its name, eager and under torch.compile's tracing."""
    import torch.distributed._functional_collectives as functional_collectives

    group = dist.group.WORLD
    whole = torch.arange(4.0 * NUM_RANKS) + RANK
    summed = functional_collectives.all_reduce(whole, "sum", group)
    part = functional_collectives.reduce_scatter_tensor(
        whole, "avg" if dist.get_backend() != "gloo" else "sum", 0, group
    )
    gathered = functional_collectives.all_gather_tensor(part, 0, group)
    if dist.get_backend() != "gloo":
        gathered = gathered * NUM_RANKS  # gloo has no average here
    return [summed.clone(), gathered.clone()]


PROGRAMS: tuple[Callable[[], list[Tensor]], ...] = (ddp, ddp_with_hook, fsdp, hybrid_fsdp, dtensors, functional)


def run_with(backend: str) -> dict[str, list[Tensor]]:
    dist.init_process_group(backend)
    results = {program.__name__: program() for program in PROGRAMS}
    dist.barrier()
    dist.destroy_process_group()
    return results


def main() -> None:
    torch.set_num_threads(1)
    theirs, ours, again = run_with("gloo"), run_with("elastic"), run_with("elastic")
    farthest: dict[str, Any] = {}
    for name, tensors in ours.items():
        for mine, other, reference in zip(tensors, again[name], theirs[name], strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-6)
            assert mine.equal(other), f"{name}: two runs of the same program differ"
            farthest[name] = max(farthest.get(name, 0.0), (mine - reference).abs().max().item())
    print("RESULT", RANK, json.dumps(farthest), flush=True)


if __name__ == "__main__":
    main()
