"""What the ranks of ``test_fsdp2_reshard.py`` do: ``python fsdp2_job.py save|load STORE DIRECTORY EXPECTED``.

Results are printed as ``RESULT name json``. No dim divides by 2, 3 and 4, so that shards are uneven on any number of
ranks, and the last layer has so few rows that one rank of four holds none.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from rank_job import meet, num_ranks, own_rank, result
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import datastates
from oneflow_sbp import Box, local_box

RANK, NUM_RANKS = own_rank(), num_ranks()


def make_state(seed: int) -> dict[str, Any]:
    """A model cut by FSDP2 over all ranks, and its AdamW before the first step."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Embedding(13, 10), nn.Linear(10, 7), nn.LayerNorm(7), nn.Linear(7, 1025), nn.Linear(1025, 3, bias=False)
    )
    mesh = init_device_mesh("cpu", (NUM_RANKS,))
    for layer in (*model, model):
        fully_shard(layer, mesh=mesh)
    decay = [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": decay}, {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}]
    return {"model": model, "optimizer": torch.optim.AdamW(groups, lr=0.01, amsgrad=True)}


def train(state: dict[str, Any], seed: int) -> None:
    tokens = torch.randint(13, (4, 5), generator=torch.Generator().manual_seed(NUM_RANKS * seed + RANK))
    state["model"](tokens).square().mean().backward()
    state["optimizer"].step()
    state["optimizer"].zero_grad()


def tensors(state: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and every tensor of AdamW, by the name it has in a checkpoint."""
    for name, parameter in state["model"].named_parameters():
        yield f"model.{name}", parameter
        for key, item in state["optimizer"].state[parameter].items():
            yield f"optimizer.state.{name}.{key}", item


def bits(tensor: Tensor) -> bytes:
    local = tensor.detach()
    local = local.to_local() if isinstance(local, DTensor) else local
    return local.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def save(directory: str, expected: str) -> None:
    """Train, save, and keep the whole values, put together by FSDP itself."""
    state = make_state(seed=1)
    for step in range(3):
        train(state, step)
    with datastates.Checkpointer(directory) as checkpoints:
        taken = checkpoints.checkpoint(2, state)
        full = {k: (v.full_tensor() if isinstance(v, DTensor) else v).detach().clone() for k, v in tensors(state)}
        train(state, 3)  # passes the gate: what was saved is what was captured
        result("published", taken.durable.result(60).name)
    if RANK == 0:
        torch.save(full, expected)
    result("rows", [sum(local_box(p)[2].sizes[:1]) for _, p in state["model"].named_parameters()])


def load(directory: str, expected: str) -> None:
    """By ``restore()``, by stock DCP and by our reader, on this number of ranks."""
    ours, stock = make_state(seed=2), make_state(seed=3)
    with datastates.Checkpointer(directory) as checkpoints:
        result("start", checkpoints.restore(ours))
    load_with_stock_dcp(stock, next(Path(directory).glob("step-*")))
    wanted, reader = torch.load(expected), datastates.open_checkpoint(directory)
    different = []
    for name, tensor in tensors(ours):
        box = local_box(tensor)[2]
        if bits(tensor) != bits(wanted[name][box.relative_to(Box.whole(wanted[name].shape))]):
            different.append(f"{name} as restored")
        if bits(dict(tensors(stock))[name]) != bits(tensor):
            different.append(f"{name} as stock DCP loads it")
        if bits(reader.read(name, box)) != bits(tensor):
            different.append(f"{name} as our reader reads it")
    result("different", different)
    result("number", len(list(tensors(ours))) if len(wanted) == len(list(tensors(stock))) else 0)
    train(ours, 3)
    train(stock, 3)
    expected = dict(tensors(stock))
    result("goes on differently", [name for name, tensor in tensors(ours) if bits(tensor) != bits(expected[name])])


def load_with_stock_dcp(state: dict[str, Any], checkpoint: Path) -> None:
    train(state, seed=9)  # makes AdamW's state, in the layout of these ranks
    dcp.load(dict(tensors(state)), storage_reader=HuggingFaceStorageReader(str(checkpoint)))


if __name__ == "__main__":
    scenario, store, *arguments = sys.argv[1:]
    meet(store)
    {"save": save, "load": load}[scenario](*arguments)
    dist.barrier()
    dist.destroy_process_group()
