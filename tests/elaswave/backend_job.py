"""What the ranks of ``test_backend.py`` do: ``python backend_job.py SCENARIO``; prints ``RESULT rank json``.

Every result is compared with gloo's in the same processes.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import elaswave
from elaswave import backend

RANK, NUM_RANKS = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
LENGTHS = (1, 1000, 40_001)  # elements per rank: one, a few, more than a block of a ring with eight-byte types
GLOO: Any = None

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int8, torch.int32, torch.int64, torch.uint8)


def result(**values: Any) -> None:
    print("RESULT", RANK, json.dumps(values), flush=True)


def values(dtype: torch.dtype, numel: int, seed: int = 0) -> Tensor:
    """Small whole numbers, other on every rank: sums and products are exact in every type."""
    generator = torch.Generator().manual_seed(1000 * seed + RANK)
    return torch.randint(1, 3, (numel,), generator=generator).to(dtype)


def on_both(operation: Callable[[Any], Any]) -> None:
    """``operation(group)`` must return the same tensors from backend elastic as from gloo."""
    ours, theirs = operation(dist.group.WORLD), operation(GLOO)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=0)


# ---- each operation


def all_reduce(dtype: torch.dtype, numel: int, op: Any) -> Callable[[Any], Any]:
    def run(group: Any) -> list[Tensor]:
        tensor = values(dtype, numel)
        dist.all_reduce(tensor, op=op, group=group)
        return [tensor]

    return run


def reduce(dtype: torch.dtype, numel: int, op: Any) -> Callable[[Any], Any]:
    def run(group: Any) -> list[Tensor]:
        tensor = values(dtype, numel)
        dist.reduce(tensor, dst=1, op=op, group=group)
        return [tensor] if RANK == 1 else []

    return run


def reduce_scatter(dtype: torch.dtype, numel: int, op: Any) -> Callable[[Any], Any]:
    def run(group: Any) -> list[Tensor]:
        whole = values(dtype, numel * NUM_RANKS)
        parts = list(whole.split(numel))
        tensor = torch.zeros(numel, dtype=dtype)
        if group is GLOO:  # which has none of its own: a sum of all, of which each takes its part
            dist.all_reduce(whole, op=op, group=group)
            return [whole.split(numel)[RANK]] * 2
        dist.reduce_scatter(tensor, parts, op=op, group=group)
        flat = torch.zeros(numel, dtype=dtype)
        dist.reduce_scatter_tensor(flat, whole, op=op, group=group)
        return [tensor, flat]

    return run


def moves(dtype: torch.dtype, numel: int) -> Callable[[Any], Any]:
    """Everything that only moves data."""

    def run(group: Any) -> list[Tensor]:
        out = [broadcast := values(dtype, numel)]
        dist.broadcast(broadcast, src=1, group=group)
        gathered = [torch.zeros(numel, dtype=dtype) for _ in range(NUM_RANKS)]
        dist.all_gather(gathered, values(dtype, numel), group=group)
        flat = torch.zeros(numel * NUM_RANKS, dtype=dtype)
        dist.all_gather_into_tensor(flat, values(dtype, numel), group=group)
        to_root = [torch.zeros(numel, dtype=dtype) for _ in range(NUM_RANKS)] if RANK == 2 else None
        dist.gather(values(dtype, numel), to_root, dst=2, group=group)
        part = torch.zeros(numel, dtype=dtype)
        parts = [values(dtype, numel, seed) for seed in range(NUM_RANKS)] if RANK == 0 else None
        dist.scatter(part, parts, src=0, group=group)
        exchanged = torch.zeros(numel * NUM_RANKS, dtype=dtype)
        dist.all_to_all_single(exchanged, values(dtype, numel * NUM_RANKS), group=group)
        return [*out, *gathered, flat, *(to_root or []), part, exchanged]

    return run


def uneven_all_to_all(group: Any) -> list[Tensor]:
    lengths_in = [RANK + peer + 1 for peer in range(NUM_RANKS)]  # symmetric: what comes is as long as what goes
    out = torch.zeros(sum(lengths_in), 3)
    dist.all_to_all_single(out, torch.rand(sum(lengths_in), 3, generator=torch.Generator().manual_seed(RANK)),
                           lengths_in, lengths_in, group=group)  # fmt: skip
    return [out]


def strided(group: Any) -> list[Tensor]:
    """Tensors that are not contiguous, in and out."""
    matrix = torch.arange(12.0).reshape(3, 4) + RANK
    dist.all_reduce(matrix.t()[1:3], group=group) if group is not GLOO else matrix.t()[1:3].copy_(
        _reduced(matrix.t()[1:3].contiguous())
    )
    column = matrix.clone()[:, 0]
    if group is GLOO:
        column = column.contiguous()
    dist.broadcast(column, src=2, group=group)
    return [matrix, column]


def _reduced(tensor: Tensor) -> Tensor:
    dist.all_reduce(tensor, group=GLOO)
    return tensor


def pairs(group: Any) -> list[Tensor]:
    """A ring of sends, in batches, with tags, and out of order."""
    after, before = (RANK + 1) % NUM_RANKS, (RANK - 1) % NUM_RANKS
    got = [torch.zeros(7) for _ in range(4)]
    sends = [dist.isend(torch.full((7,), 10.0 * RANK + tag), after, group=group, tag=tag) for tag in (1, 2)]
    receives = [dist.irecv(got[tag - 1], before, group=group, tag=tag) for tag in (2, 1)]
    for work in (*sends, *receives):
        work.wait()
    batch = [
        dist.P2POp(dist.irecv, got[2], before, group),
        dist.P2POp(dist.isend, torch.full((7,), 100.0 + RANK), after, group),
    ]
    for work in dist.batch_isend_irecv(batch):
        work.wait()
    if RANK == 0:
        dist.send(torch.full((7,), 3.5), 1, group=group)
    elif RANK == 1:
        dist.recv(got[3], 0, group=group)
    return got


def objects(group: Any) -> list[Tensor]:
    gathered: list[Any] = [None] * NUM_RANKS
    dist.all_gather_object(gathered, {"rank": RANK, "text": "x" * (RANK * 100)}, group=group)
    told = [["from", RANK]]
    dist.broadcast_object_list(told, src=1, group=group)
    assert gathered == [{"rank": rank, "text": "x" * (rank * 100)} for rank in range(NUM_RANKS)]
    assert told == [["from", 1]]
    return []


def operations() -> None:
    """Every operation with every type and reduction that gloo has; the rest against numbers."""
    num_cases = 0
    for numel in LENGTHS:
        for dtype in (*FLOATS, *INTEGERS):
            ops = [dist.ReduceOp.SUM, dist.ReduceOp.PRODUCT, dist.ReduceOp.MIN, dist.ReduceOp.MAX]
            if dtype in INTEGERS:
                ops += [dist.ReduceOp.BAND, dist.ReduceOp.BOR, dist.ReduceOp.BXOR]
            for op in ops:
                on_both(all_reduce(dtype, numel, op))
                on_both(reduce(dtype, numel, op))
                on_both(reduce_scatter(dtype, numel, op))
                num_cases += 3
            on_both(moves(dtype, numel))
            num_cases += 1
    for operation in (uneven_all_to_all, strided, pairs, objects):
        on_both(operation)
        num_cases += 1
    result(num_cases=num_cases)


def coalesced_pairs() -> None:
    """Messages between two ranks belong to what is coalesced: it is done when they are."""
    after, before, got = (RANK + 1) % NUM_RANKS, (RANK - 1) % NUM_RANKS, torch.zeros(2_000_000)
    if RANK == 0:  # the others are well ahead
        dist.recv(torch.zeros(1), 1)
    elif RANK == 1:
        dist.send(torch.ones(1), 0)
    with dist._coalescing_manager(device=torch.device("cpu"), async_ops=True) as coalesced:
        dist.irecv(got, before, tag=9)
        dist.isend(torch.full((2_000_000,), RANK + 1.0), after, tag=9)
    coalesced.wait()
    assert got.eq(before + 1.0).all()


def against_numbers() -> None:
    """What gloo does not have, or not everywhere."""
    average = torch.full((50_000,), float(RANK), dtype=torch.bfloat16)
    dist.all_reduce(average, op=dist.ReduceOp.AVG)
    assert average.eq((NUM_RANKS - 1) / 2).all()
    weighted = torch.ones(50_000)
    dist.all_reduce(weighted, op=dist._make_nccl_premul_sum(0.5 * (RANK + 1)))
    assert weighted.eq(sum(0.5 * (rank + 1) for rank in range(NUM_RANKS))).all()
    truth = torch.tensor([RANK == 0, False, True])
    dist.all_reduce(truth, op=dist.ReduceOp.MAX)
    assert truth.tolist() == [True, False, True]
    complex_sum = torch.full((5,), complex(1, RANK), dtype=torch.complex64)
    dist.all_reduce(complex_sum)
    assert complex_sum.eq(complex(NUM_RANKS, sum(range(NUM_RANKS)))).all()
    eight_bits = torch.full((9,), RANK + 0.5).to(torch.float8_e4m3fn)
    dist.broadcast(eight_bits, src=1)
    assert eight_bits.float().eq(1.5).all()
    for tensor in (several := [torch.full((size,), float(RANK)) for size in (3, 0, 30_000)]):
        tensor.add_(1)
    with dist._coalescing_manager():
        for tensor in several:
            dist.all_reduce(tensor)
    assert all(tensor.eq(sum(range(NUM_RANKS)) + NUM_RANKS).all() for tensor in several)
    if RANK == 2:
        seen = {}
        for _ in range(NUM_RANKS - 1):
            from_anybody = torch.zeros(2)
            source = dist.recv(from_anybody)
            seen[source] = from_anybody.tolist()
        assert seen == {rank: [float(rank)] * 2 for rank in range(NUM_RANKS) if rank != 2}
    else:
        dist.send(torch.full((2,), float(RANK)), 2)
    coalesced_pairs()
    dist.group.WORLD.monitored_barrier(timedelta(seconds=60))
    result(passed=True)


def refusals() -> None:
    """Clear errors, that leave the group as it was."""
    texts = []
    for attempt in (
        lambda: dist.all_reduce(torch.eye(2).to_sparse()),
        lambda: dist.all_reduce(torch.ones(2), op=dist.ReduceOp.BXOR),
        lambda: dist.all_reduce(torch.ones(2).to(torch.float8_e4m3fn)),
        lambda: dist.all_gather_into_tensor(torch.zeros(NUM_RANKS + 1), torch.ones(1)),
        lambda: dist.all_to_all_single(torch.zeros(4), torch.ones(4), [4, 1, 0], [1, 1, 2]),
        lambda: dist.all_to_all_single(torch.zeros(3), torch.ones(3)),
    ):
        try:
            attempt()
        except (RuntimeError, ValueError, NotImplementedError) as error:
            texts.append(str(error).splitlines()[0])
    tensor = torch.ones(3)
    dist.all_reduce(tensor)
    result(texts=texts, after=tensor.tolist())


def unanswered() -> None:
    """A receive that nobody answers ends in time, on the ranks that wait for others too."""
    group = dist.new_group([0, 1], timeout=timedelta(seconds=10))
    try:
        if RANK == 0:
            dist.recv(torch.zeros(1), 1, group=group)
        else:
            dist.recv(torch.zeros(1), group=group)
    except dist.DistBackendError as error:
        result(text=str(error))


def killed() -> None:
    """The last rank dies of SIGKILL while the others wait for it, in groups and in a receive."""
    sub = dist.new_group([0, NUM_RANKS - 1])
    dist.barrier()
    if RANK == NUM_RANKS - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    failures = {}
    work = dist.all_reduce(torch.ones(100_000), async_op=True)
    for name, wait in {
        "all_reduce": work.wait,
        "barrier": dist.barrier,
        "sub": lambda: dist.all_reduce(torch.ones(1), group=sub) if RANK == 0 else None,
    }.items():
        try:
            wait()
        except dist.DistBackendError as error:
            told = elaswave.lost(error)
            failures[name] = [list(told.ranks), told.epoch] if told else str(error)
    result(failures=failures)


def mean_gradient(net: torch.nn.Module, of_rank: float) -> float:
    net.zero_grad()
    net(torch.full((1, 1), float(of_rank))).sum().backward()
    (parameter,) = net.parameters()
    return float(parameter.grad)


def edited() -> None:
    """Rank 1 dies; the others take it out of the group, and everything made before goes on in it."""
    net = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1, bias=False))
    before = mean_gradient(net, RANK)
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        dist.barrier()
    except dist.DistBackendError as error:
        told = elaswave.lost(error)
    assert told
    assert told.ranks == (1,)
    group, pairs_before = backend.comm_group_of(), list(dist.distributed_c10d._world.pg_group_ranks)
    group.revoke("edited")
    members = [handle for rank, handle in enumerate(group.handles()) if rank != 1]
    backend.start_endpoint().install(group, group.epoch + 1, members, 60)
    backend.adopt_view()
    assert list(dist.distributed_c10d._world.pg_group_ranks) == pairs_before
    tensor = torch.full((70_000,), float(RANK))
    dist.all_reduce(tensor)
    sub = dist.new_group([0, 2])
    in_sub = torch.ones(1)
    if dist.get_rank() != 1:
        dist.all_reduce(in_sub, group=sub)
    result(
        rank=dist.get_rank(),
        size=dist.get_world_size(),
        ranks=dist.get_process_group_ranks(dist.group.WORLD),
        ddp_size=net.process_group.size(),
        backend_rank=dist.group.WORLD._get_backend(torch.device("cpu")).rank(),
        sum=tensor[-1].item(),
        gradients=[before, mean_gradient(net, RANK)],
        in_sub=in_sub.item(),
    )


def main() -> None:
    global GLOO
    torch.set_num_threads(1)
    dist.init_process_group("elastic")
    GLOO = dist.new_group(backend="gloo")
    for name in sys.argv[1:]:
        globals()[name]()
    if not {"killed", "edited", "unanswered"} & set(sys.argv):
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
