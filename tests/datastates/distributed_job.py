"""What the ranks of ``test_distributed.py`` do: ``python distributed_job.py SCENARIO STORE ARGUMENTS...``.

Ranks meet over a file, so no port can be taken by somebody else. Results are printed as ``RESULT name json``.
"""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rank_job import meet, num_ranks, own_rank, result, told
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import datastates

import _elastates

RANK, NUM_RANKS = own_rank(), num_ranks()


def bits(tensor: Tensor) -> bytes:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def hold_writes() -> None:
    _elastates.set_fault("write", times=2**31 - 1, hold=True)


# ---- training, killed and resumed


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.large, self.norm, self.out = nn.Linear(1024, 1024), nn.BatchNorm1d(1024), nn.Linear(1024, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.large(x)).relu())


def reduce_in_rank_order(model: nn.Module) -> None:
    """Mean gradients, summed in the same order in a job's first step and in its last; DDP's buckets change."""
    flat = torch.cat([p.grad.flatten() for p in model.parameters()])
    everyone = [torch.empty_like(flat) for _ in range(NUM_RANKS)]
    dist.all_gather(everyone, flat)
    mean = torch.stack(everyone).sum(0) / NUM_RANKS
    at = 0
    for p in model.parameters():
        p.grad.copy_(mean[at : at + p.numel()].view_as(p))
        at += p.numel()


def train(directory: str, dump: str) -> None:
    """Save at step 5 alone, dump everything at step 20, be in the middle of another checkpoint when killed."""
    torch.manual_seed(3)
    model = DistributedDataParallel(Net(), broadcast_buffers=False)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    torch.manual_seed(100 + RANK)  # each rank draws its own data
    own = torch.zeros(3)
    state = {
        "model": model,
        "optimizer": optimizer,
        "rng": datastates.rng_state(),
        "own": datastates.per_rank({"drawn": own, "rank": RANK}),
    }
    checkpoints = datastates.Checkpointer(directory, arena_mb=4, chunk_bytes=1 << 20, commit_timeout_s=60)
    start = checkpoints.restore(state)
    result("start", start)
    if start:
        checkpoints.checkpoint(5 + 100, state).durable.result(60)
        result("cleared", sorted(path.name for path in Path(directory).iterdir()))
    for step in range(start, 21):
        optimizer.zero_grad()
        own += torch.randn(3)
        with model.no_sync():
            model(torch.randn(8, 1024)).square().mean().backward()
        reduce_in_rank_order(model)
        optimizer.step()
        if step == 5:
            checkpoints.checkpoint(step, state)
    checkpoints.wait()
    named = {f"model.{k}": v for k, v in model.module.state_dict().items()}
    named |= {f"{i}.{k}": v for i, s in enumerate(optimizer.state.values()) for k, v in s.items()}
    torch.save({**named, "own": own, "rng": torch.get_rng_state()}, f"{dump}-{RANK}.pt")
    hold_writes()
    checkpoints.checkpoint(21, state).safe_to_mutate.result(60)  # it has begun: its file is there, all but written
    result("dumped", True)
    signal.pause()


# ---- layouts, saved on some number of ranks and restored on another


def reference(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mesh_2d() -> tuple[int, int]:
    return (2, NUM_RANKS // 2) if NUM_RANKS % 2 == 0 else (1, NUM_RANKS)


def layouts(filled: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A state in many layouts, holding the reference values or zeros; and the full reference values by name."""
    line = init_device_mesh("cpu", (NUM_RANKS,))
    plane = init_device_mesh("cpu", mesh_2d(), mesh_dim_names=("replicate", "shard"))
    kinds: dict[str, tuple[tuple[int, ...], Any, list[Placement]]] = {
        "rows": ((10, 8), line, [Shard(0)]),
        "columns": ((7, 10), line, [Shard(1)]),
        "few_rows": ((2, 5), line, [Shard(0)]),  # some ranks hold none
        "same": ((6, 5), line, [Replicate()]),
        "hybrid": ((9, 4), plane, [Replicate(), Shard(0)]),
        "tiles": ((9, 11), plane, [Shard(0), Shard(1)]),
        "cube": ((3, 6, 5), plane, [Shard(2), Shard(1)]),
        "twice": ((13, 3), plane, [Shard(0), Shard(0)]),
    }
    state: dict[str, Any] = {}
    full: dict[str, Tensor] = {}
    for seed, (name, (shape, mesh, placements)) in enumerate(kinds.items()):
        full[name] = reference(shape, seed)
        state[name] = distribute_tensor(full[name] if filled else torch.zeros(shape), mesh, placements)
    torch.manual_seed(11 if filled else 12)
    sharded = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))  # 7 and 3 rows: uneven on any number of ranks
    copied = nn.Linear(600, 600)
    for layer in (sharded[0], sharded[2], sharded):
        fully_shard(layer, mesh=line)
    optimizer = torch.optim.AdamW(sharded.parameters())
    return state | {"fsdp": sharded, "optimizer": optimizer, "ddp": DistributedDataParallel(copied)}, full


def full_values(state: dict[str, Any]) -> dict[str, Tensor]:
    """Every tensor of the state, put together; collective."""
    fsdp, optimizer = state["fsdp"], state["optimizer"]
    named = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    named |= {f"fsdp.{k}": v for k, v in fsdp.state_dict().items()}
    named |= {f"ddp.{k}": v for k, v in state["ddp"].module.state_dict().items()}
    for k, p in fsdp.named_parameters():
        named |= {f"optimizer.state.{k}.{key}": v for key, v in optimizer.state[p].items()}
    return {k: (v.full_tensor() if isinstance(v, DTensor) else v).detach().clone() for k, v in named.items()}


def save_layouts(directory: str, expected: str) -> None:
    """One checkpoint before the first forward and one after a step; the full values of both are kept."""
    state, full = layouts(filled=True)
    with datastates.Checkpointer(directory, verify_immutability="full") as checkpoints:
        checkpoints.checkpoint(0, state)
        train_sharded(state)
        after = full_values(state)
        taken = checkpoints.checkpoint(1, state)
        train_sharded(state)  # in the window: forward, backward and step of FSDP are no mutation
        result("published", str(taken.durable.result(60).name))
    result("as distributed", [name for name, value in full.items() if not torch.equal(after[name], value)])
    if RANK == 0:
        torch.save(after, expected)


def train_sharded(state: dict[str, Any]) -> None:
    state["optimizer"].zero_grad()
    state["fsdp"](torch.ones(2, 5)).square().sum().backward()
    state["optimizer"].step()


def load_layouts(directory: str, expected: str, step: str) -> None:
    """Restore on this number of ranks, compare bit for bit, and save for the next number."""
    state, _ = layouts(filled=False)
    with datastates.Checkpointer(directory) as checkpoints:
        result("start", checkpoints.restore(state))
        found, wanted = full_values(state), torch.load(expected)
        result("different", [k for k in wanted if k not in found or bits(found[k]) != bits(wanted[k])])
        result("unknown", sorted(found.keys() - wanted.keys()))
        checkpoints.checkpoint(int(step), state).durable.result(60)


# ---- disagreement, damage and failure of one rank; every scenario has a directory of its own


def small_state(seed: int = 0, width: int = 300) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = nn.Linear(width, width)
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}


def outcomes(directory: Path, state: dict[str, Any], before: Callable[[Any], Any], **options: Any) -> list[Any]:
    """[error of a checkpoint for which ``before`` gave (step, state), error of the next one, steps published]."""
    with datastates.Checkpointer(directory, commit_timeout_s=20, **options) as checkpoints:
        step, other = before(checkpoints)
        failed = told(checkpoints.checkpoint(step, other).durable.result)
        _elastates.clear_fault()
        good = told(checkpoints.checkpoint(7, state).durable.result)
        return [failed, good, checkpoints.steps(), sorted(p.name for p in directory.iterdir() if RANK == 0)]


def diverged(directory: Path) -> Any:
    other = small_state()
    with torch.no_grad():
        other["model"].weight[299, 299] += RANK
    return outcomes(directory, small_state(), lambda _: (1, other), verify_immutability="full")


def different_steps(directory: Path) -> Any:
    state = small_state()
    return outcomes(directory, state, lambda _: (RANK + 3, state))


def different_shapes(directory: Path) -> Any:
    other = {"value": torch.zeros(2 + RANK)}
    return outcomes(directory, small_state(), lambda _: (1, other))


def write_fails(directory: Path) -> Any:
    state = small_state()

    def on_one(_: Any) -> Any:
        if RANK == 1:
            _elastates.set_fault("write", error=errno.ENOSPC)
        return 1, state

    return outcomes(directory, state, on_one)


def one_is_full(directory: Path) -> Any:
    """Rank 1's arena is full when the second checkpoint is taken; no rank takes it."""
    state = small_state(width=600)  # 1.4 MB, of which each rank writes a half
    with datastates.Checkpointer(directory, policy="skip", arena_mb=1, chunk_bytes=65536) as checkpoints:
        if RANK == 1:
            hold_writes()
        first = checkpoints.checkpoint(0, state)
        (first.safe_to_mutate if RANK == 1 else first.written).result(60)
        second = told(checkpoints.checkpoint(1, state).durable.result)
        _elastates.clear_fault()
        first.durable.result(60)
        return [second, told(checkpoints.checkpoint(2, state).durable.result), checkpoints.steps()]


def room_for_two(directory: Path) -> Any:
    """An arena for two of this rank's shares takes two checkpoints, although the whole state is larger."""
    state = small_state(width=600)
    with datastates.Checkpointer(directory, policy="skip", arena_mb=2, chunk_bytes=65536) as checkpoints:
        checkpoints.checkpoint(0, state).durable.result(60)
        hold_writes()
        taken = [checkpoints.checkpoint(step, state) for step in (1, 2)]
        copied = [told(lambda one=one: one.safe_to_mutate.result(60)) for one in taken]
        _elastates.clear_fault()
        return [copied, [told(one.durable.result) for one in taken]]


def state_of_one_refused(directory: Path) -> Any:
    """Rank 1 cannot take part and says so at its call; the others hear of it, and all go on."""
    state = small_state()
    with datastates.Checkpointer(directory, commit_timeout_s=3) as checkpoints:
        if RANK == 1:
            first = told(lambda: checkpoints.checkpoint(0, {"thing": object()}))
        else:
            first = told(checkpoints.checkpoint(0, state).durable.result)
        return [first, told(checkpoints.checkpoint(1, state).durable.result), checkpoints.steps()]


def structure_changes(directory: Path) -> Any:
    """New tensors appear, on all ranks and on one; every structure is agreed on anew."""
    state = small_state()
    with datastates.Checkpointer(directory, keep_last=None) as checkpoints:
        errors = [told(checkpoints.checkpoint(0, state).durable.result)]
        errors += [told(checkpoints.checkpoint(1, {**state, "more": torch.ones(2)}).durable.result)]
        mine = {"mine": torch.full((3,), 5.0)} if RANK == 1 else {}
        errors += [told(checkpoints.checkpoint(2, {**state, **mine}).durable.result)]
        return [errors, checkpoints.steps()]


def different_directories(directory: Path) -> Any:
    return told(lambda: datastates.Checkpointer(directory / f"of-rank-{RANK}"))


def damage(directory: Path) -> Any:
    """A byte flips in one rank's file of the newest checkpoint, then the next one's objects of another rank."""
    state = small_state()
    clones = []
    with datastates.Checkpointer(directory, keep_last=None) as checkpoints:
        for step in range(3):
            checkpoints.checkpoint(step, state).durable.result(60)
            clones.append(state["model"].weight.detach().clone())
            state["model"](torch.ones(1, 300)).sum().backward()
            state["optimizer"].step()
    dist.barrier()
    if RANK == 0:
        for name in ("step-00000002/rank-00001.safetensors", "step-00000001/rank-00001.objects.json"):
            content = bytearray((directory / name).read_bytes())
            content[-9] ^= 1
            (directory / name).write_bytes(content)
    dist.barrier()
    with datastates.Checkpointer(directory) as checkpoints:
        start = checkpoints.restore(state)
        return [start, torch.equal(state["model"].weight, clones[0])]


def own_python_state(directory: Path) -> Any:
    state = small_state() | {"plain": {"rank": RANK}, "own": datastates.per_rank(torch.full((2,), float(RANK)))}
    with datastates.Checkpointer(directory) as checkpoints:
        checkpoints.checkpoint(0, state).durable.result(60)
        state["plain"]["rank"], state["own"] = -1, datastates.per_rank(torch.zeros(2))
        checkpoints.restore(state)
        return [state["plain"]["rank"], state["own"].value.tolist()]


def one_for_all(directory: Path) -> Any:
    """Rank 1 saves by itself what both hold; rank 0 is refused to save there meanwhile; both restore by themselves."""
    state = small_state()
    checkpoints = datastates.Checkpointer(directory, alone=True)
    saved = told(checkpoints.checkpoint(4, state).durable.result) if RANK == 1 else ""
    dist.barrier()
    refused = told(checkpoints.checkpoint(5, state).durable.result) if RANK == 0 else ""
    fresh = small_state(seed=1)
    start = checkpoints.restore(fresh)
    half = {"half": distribute_tensor(torch.ones(4), init_device_mesh("cpu", (2,)), [Shard(0)])}
    part = told(checkpoints.checkpoint(6, half).durable.result) if RANK == 1 else ""
    dist.barrier()
    checkpoints.close()
    return [saved, refused, start, torch.equal(fresh["model"].weight, state["model"].weight), part]


SCENARIOS = [
    one_for_all,
    diverged,
    different_steps,
    different_shapes,
    write_fails,
    one_is_full,
    room_for_two,
    state_of_one_refused,
    structure_changes,
    different_directories,
    damage,
    own_python_state,
]


def disagree(root: str) -> None:
    for scenario in SCENARIOS:
        directory = Path(root) / scenario.__name__
        directory.mkdir(parents=True, exist_ok=True)
        dist.barrier()
        result(scenario.__name__, scenario(directory))


# ---- death of a rank


def die(directory: str, victim: str, when: str) -> None:
    """``victim`` kills itself before a checkpoint, or while its file is being written."""
    state = small_state()
    checkpoints = datastates.Checkpointer(directory, commit_timeout_s=3, chunk_bytes=65536)
    checkpoints.checkpoint(0, state).durable.result(60)
    dist.barrier()
    if int(victim) == RANK:
        if when == "within":
            hold_writes()
            checkpoints.checkpoint(1, state).safe_to_mutate.result(60)
        os.kill(os.getpid(), signal.SIGKILL)
    begun_s = time.monotonic()
    taken = checkpoints.checkpoint(1, state)
    optimizer_stepped = told(lambda: (state["model"](torch.ones(1, 300)).sum().backward(), state["optimizer"].step()))
    error = told(lambda: taken.durable.result(60))
    result("outcome", [error, optimizer_stepped, time.monotonic() - begun_s, checkpoints.steps()])
    checkpoints.close()
    result("closed", True)
    os._exit(0)  # what the process group does about a dead peer is not our subject


def main() -> None:
    scenario, store, *arguments = sys.argv[1:]
    meet(store)
    globals()[scenario](*arguments)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
