"""What the ranks of ``test_dcp_ranks.py`` do: ``python dcp_job.py STORE DIRECTORY``.

Ranks meet over a file. Results are printed as ``RESULT name json``.
"""

import errno
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from rank_job import meet, num_ranks, own_rank, result, told
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import datastates

import _elastates

RANK, NUM_RANKS = own_rank(), num_ranks()


def reference(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(filled: bool, line: DeviceMesh) -> tuple[nn.Module, torch.optim.Optimizer, dict[str, Any]]:
    """An FSDP2 model, its optimizer, and a state with it and tensors of other layouts; values or zeros."""
    torch.manual_seed(1 if filled else 2)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))  # rows are shared unevenly
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=line)
    optimizer = torch.optim.AdamW(model.parameters())
    if filled:
        model(torch.ones(2, 5)).square().sum().backward()
        optimizer.step()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    full = [reference(seed, 10, 8) if filled else torch.zeros(10, 8) for seed in range(3)]
    few = reference(3, 2, 5) if filled else torch.zeros(2, 5)
    state = {
        "model": model_state,
        "optimizer": optimizer_state,
        "rows": distribute_tensor(full[0], line, [Shard(0)]),
        "columns": distribute_tensor(full[1], line, [Shard(1)]),
        "same": distribute_tensor(full[2], line, [Replicate()]),
        "few_rows": distribute_tensor(few, line, [Shard(0)]),  # some ranks hold none
        "plain": reference(4, 6) if filled else torch.zeros(6),
        "progress": {"epoch": 3 if filled else 0, "of": (1, 2) if filled else None},
    }
    return model, optimizer, state


def values(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Tensor]:
    named = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    named |= model.state_dict()
    for name, parameter in model.named_parameters():
        named |= {f"{name}.{key}": value for key, value in optimizer.state[parameter].items()}
    return {k: (v.full_tensor() if isinstance(v, DTensor) else v).detach().clone() for k, v in named.items()}


def save_and_load(directory: Path) -> None:
    """Three checkpoints: synchronous, in a thread, in a process; loaded by all ranks but the last."""
    line = init_device_mesh("cpu", (NUM_RANKS,))
    model, optimizer, state = make(filled=True, line=line)
    expected = values(model, optimizer, state)
    dcp.save(state, storage_writer=datastates.dcp_writer(directory))
    dcp.async_save(state, storage_writer=datastates.dcp_writer(directory)).result()
    writer = datastates.dcp_writer(directory / "step-2")
    dcp.async_save(state, storage_writer=writer, async_checkpointer_type=AsyncCheckpointerType.PROCESS).result()
    if RANK == 0:
        torch.save(expected, directory / "expected.pt")
    fewer = dist.new_group(list(range(NUM_RANKS - 1)))
    if RANK < NUM_RANKS - 1:
        load(directory, fewer, expected)
    result("done", True)


def load(directory: Path, group: dist.ProcessGroup, expected: dict[str, Tensor]) -> None:
    line = DeviceMesh.from_group(group, "cpu")
    for step in range(3):
        model, optimizer, state = make(filled=False, line=line)
        model(torch.zeros(2, 5)).sum().backward()
        optimizer.step()
        model_state, optimizer_state = get_state_dict(model, optimizer)
        state |= {"model": model_state, "optimizer": optimizer_state}
        dcp.load(state, storage_reader=datastates.dcp_reader(directory / f"step-{step}"), process_group=group)
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        found = values(model, optimizer, state)
        different = [k for k, v in expected.items() if not torch.equal(found[k], v) or found[k].dtype != v.dtype]
        result(f"step {step}", [different, sorted(found.keys() ^ expected.keys()), state["progress"]])


def damage_and_failure(directory: Path) -> None:
    line = init_device_mesh("cpu", (NUM_RANKS,))
    for step in range(3):
        state = {"w": distribute_tensor(torch.full((8, 4), float(step)), line, [Shard(0)]), "step": step}
        dcp.save(state, storage_writer=datastates.dcp_writer(directory))
    dist.barrier()
    if RANK == 0:
        path = directory / f"step-00000002/rank-{NUM_RANKS - 1:05d}.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    dist.barrier()

    found = {"w": distribute_tensor(torch.zeros(8, 4), line, [Shard(0)]), "step": None}
    result("named", told(lambda: dcp.load(found, storage_reader=datastates.dcp_reader(directory / "step-2"))))
    dcp.load(found, storage_reader=datastates.dcp_reader(directory))
    result("fell back", [found["w"].full_tensor().unique().tolist(), found["step"]])

    if RANK == NUM_RANKS - 1:
        _elastates.set_fault("write", error=errno.EIO)
    failed = told(lambda: dcp.save(state, storage_writer=datastates.dcp_writer(directory)))
    _elastates.clear_fault()
    result("failed", failed)
    dcp.save(state, storage_writer=datastates.dcp_writer(directory))
    result("left", sorted(path.name for path in directory.glob("*step-*")))
    dist.barrier()

    alone = {"w": state["w"]} if RANK == 0 else {}
    writer = datastates.dcp_writer(directory / f"alone-{RANK}")
    result("torn", told(lambda: dcp.save(alone, storage_writer=writer, no_dist=True)))


def main() -> None:
    store, directory = sys.argv[1:]
    meet(store)
    for name in ("save_and_load", "damage_and_failure"):
        path = Path(directory) / name
        path.mkdir(parents=True, exist_ok=True)
        dist.barrier()
        globals()[name](path)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
