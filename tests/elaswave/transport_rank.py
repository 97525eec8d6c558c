"""A rank for the conformance suite of transports: transport_rank.py KIND SCENARIO. One JSON line with what it saw."""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed import ReduceOp

import elaswave
from elaswave import exits
from elaswave.errors import NoQuorumError
from elaswave.transports import ElasticTransport, PeerLostError, TransportError, UndeclaredError
from elaswave.transports.checked import OPS

KIND, SCENARIO = sys.argv[1:3]
NUMBERS = {
    ReduceOp.SUM: sum,
    ReduceOp.PRODUCT: lambda values: __import__("math").prod(values),
    ReduceOp.MIN: min,
    ReduceOp.MAX: max,
    ReduceOp.AVG: lambda values: sum(values) / len(values),
}
EVERY_DTYPE = (torch.bool, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.float16)
EVERY_DTYPE += (torch.bfloat16, torch.float32, torch.float64, torch.complex64)


def make_transport() -> ElasticTransport:
    if KIND == "mpi":
        from elaswave.transports.mpi import MpiTransport

        host = None
        if SCENARIO == "partition":  # two hosts of two ranks each
            host = f"host-{int(os.environ['OMPI_COMM_WORLD_RANK']) // 2}"
        return MpiTransport(host=host)
    if KIND == "gloo":
        from elaswave.transports.gloo import GlooTransport

        return GlooTransport()
    import torch.distributed as dist

    from elaswave.transports.elastic import ElasticGroupTransport

    assert KIND == "elastic"
    dist.init_process_group("elastic")
    return ElasticGroupTransport()


def say(**seen: Any) -> None:
    os.write(1, (json.dumps(seen) + "\n").encode())


def error_of(call: Callable[..., Any], *arguments: Any) -> str:
    """What it raises, which it must."""
    try:
        call(*arguments)
    except (TransportError, ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError(f"{call} raised nothing")


def check_sums(transport: ElasticTransport, num_elements: int = 1000) -> None:
    """A sum that depends on every rank of the present view."""
    n = transport.num_ranks
    tensor = torch.full((num_elements,), float(transport.rank + 1))
    transport.all_reduce(tensor)
    assert torch.equal(tensor, torch.full((num_elements,), n * (n + 1) / 2)), tensor[:3]


def check_reductions(transport: ElasticTransport) -> int:
    """Every declared type by every operation, against Python's own numbers; small enough to be exact."""
    num_checked = 0
    addends = [[rank + 1, rank + 2, 3, 1] for rank in range(transport.num_ranks)]
    for dtype in sorted(transport.capabilities.dtypes, key=str):  # the same order on all ranks
        for op in sorted(transport.capabilities.ops, key=str):
            if op == ReduceOp.AVG and not dtype.is_floating_point:
                continue
            tensor = torch.tensor(addends[transport.rank], dtype=dtype).reshape(2, 2).t()  # not contiguous
            transport.all_reduce(tensor, op)
            expected = [NUMBERS[op](column) for column in zip(*addends, strict=True)]
            assert torch.equal(tensor, torch.tensor(expected, dtype=dtype).reshape(2, 2).t()), (dtype, op, tensor)
            num_checked += 1
    return num_checked


def check_movements(transport: ElasticTransport) -> None:
    """Broadcast and all-gather of every type, also those that cannot be reduced."""
    for dtype in EVERY_DTYPE:
        mine = (torch.arange(6).reshape(2, 3) % 2 + transport.rank).to(dtype)
        parts = transport.all_gather(mine)
        for rank, part in enumerate(parts):
            assert torch.equal(part, (torch.arange(6).reshape(2, 3) % 2 + rank).to(dtype)), (dtype, parts)
        for src in range(transport.num_ranks):
            tensor = mine.clone()
            transport.broadcast(tensor, src)
            assert torch.equal(tensor, parts[src]), (dtype, src)
    scalar, empty = torch.tensor(float(transport.rank)), torch.empty(0)
    transport.all_reduce(scalar)
    assert scalar == sum(range(transport.num_ranks))
    transport.all_reduce(empty)
    transport.broadcast(empty, 0)
    assert [part.numel() for part in transport.all_gather(empty)] == [0] * transport.num_ranks
    parameter = torch.nn.Parameter(torch.full((3,), float(transport.rank)))
    transport.broadcast(parameter, transport.num_ranks - 1)
    assert parameter.tolist() == [transport.num_ranks - 1] * 3
    transport.barrier()


def results(transport: ElasticTransport) -> None:
    """Right sums, and clear errors for what is not declared; none of the errors breaks the group."""
    num_checked = check_reductions(transport)
    check_movements(transport)
    check_sums(transport, 5_000_000)
    errors = [
        error_of(transport.all_reduce, torch.ones(2, dtype=torch.complex64)),
        error_of(transport.all_reduce, torch.ones(2, dtype=torch.int32), ReduceOp.AVG),
        error_of(transport.all_reduce, torch.ones(2), ReduceOp.BXOR),
        error_of(transport.all_reduce, torch.ones(2, device="meta")),
        error_of(transport.all_reduce, [1.0]),
        error_of(transport.broadcast, torch.ones(2), transport.num_ranks),
        error_of(transport.recover, "text"),
    ]
    if not transport.capabilities.grows:
        errors.append(error_of(transport.grow, 1))
    assert transport.capabilities.ops == OPS
    check_sums(transport)
    say(rank=transport.rank, num_checked=num_checked, errors=errors, epoch=transport.epoch)


def meet_loss(transport: ElasticTransport) -> PeerLostError:
    """Reduce until somebody is lost; the tensor is as it was, and so is every later operation's fate."""
    tensor = torch.full((300_000,), float(transport.rank))
    try:
        while True:
            transport.all_reduce(tensor)
            tensor.fill_(transport.rank)
    except PeerLostError as error:
        met = error
    assert bool((tensor == transport.rank).all())
    assert error_of(transport.barrier).startswith("PeerLostError")
    told = elaswave.lost(met)
    assert told is not None
    assert (told.ranks, told.epoch) == (met.ranks, met.epoch)
    return met


def work_a_little(transport: ElasticTransport) -> None:
    """When this returns, every other member has begun to reduce as in ``meet_loss``, and waits for more."""
    for _ in range(3):
        transport.all_reduce(torch.zeros(300_000))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def lose(transport: ElasticTransport, victim: int) -> dict[str, Any]:
    """One rank is killed while the others reduce; they recover. What the survivors saw."""
    before, payload = transport.rank, f"from {transport.rank} of epoch {transport.epoch}".encode()
    if transport.rank == victim:
        work_a_little(transport)
        die()
    began_s = time.monotonic()
    error = meet_loss(transport)
    unblocked_s = time.monotonic()
    view = transport.recover(payload)
    check_sums(transport)
    assert view.epoch == transport.epoch
    assert view.ranks[transport.rank] == before
    return {
        "named": error.ranks,
        "lost": view.lost,
        "ranks": view.ranks,
        "joined": view.joined,
        "payloads": [one.decode() for one in view.payloads],
        "epoch": view.epoch,
        "unblocked_ms": (unblocked_s - began_s) * 1e3,
        "recovered_ms": (time.monotonic() - began_s) * 1e3,
    }


def deaths(transport: ElasticTransport) -> None:
    """Rank 0 dies, then the last of those who are left; two at once, one of them while the others recover."""
    first_rank = transport.rank
    rounds = [lose(transport, 0), lose(transport, transport.num_ranks - 1)]
    error = ""
    if transport.rank == 1:
        work_a_little(transport)
        die()
    if transport.rank == 0:
        meet_loss(transport)
        transport.revoke("about to die")
        die()
    error = str(meet_loss(transport))
    view = transport.recover(b"last")
    check_sums(transport)
    check_reductions(transport)
    say(first_rank=first_rank, rounds=rounds, error=error, lost=view.lost, epoch=view.epoch, rank=transport.rank)


def revoked(transport: ElasticTransport) -> None:
    """Nobody dies: one member has seen something and ends the others' operations; all go on."""
    if transport.rank == 1:
        work_a_little(transport)
        transport.revoke("a fingerprint differs")
        transport.revoke("again")
        error = error_of(transport.barrier)
    else:
        error = str(meet_loss(transport))
    view = transport.recover(b"x")
    check_sums(transport)
    say(rank=transport.rank, error=error, lost=view.lost, epoch=view.epoch, num_ranks=transport.num_ranks)


def partition(transport: ElasticTransport) -> None:
    """Both ranks of the second host are gone at once: dead or cut off, nobody here can know."""
    if transport.rank >= 2:
        work_a_little(transport)
        die()
    meet_loss(transport)
    try:
        transport.recover()
    except NoQuorumError as error:
        say(rank=transport.rank, error=str(error))
        os._exit(exits.NO_QUORUM)


def silent(transport: ElasticTransport) -> None:
    """A rank is stopped: it lives, and never comes."""
    if transport.rank == 1:
        work_a_little(transport)
        os.kill(os.getpid(), signal.SIGSTOP)
    meet_loss(transport)
    view = transport.recover()
    check_sums(transport)
    say(rank=transport.rank, lost=view.lost)


def store_lost(transport: ElasticTransport) -> None:
    """Rank 0 dies, and with it what the others would agree through."""
    if transport.rank == 0:
        work_a_little(transport)
        die()
    meet_loss(transport)
    say(rank=transport.rank, declared=transport.capabilities.survives_rank_0, error=error_of(transport.recover))
    os._exit(0)


SCENARIOS = {one.__name__: one for one in (results, deaths, revoked, partition, silent, store_lost)}


def main() -> None:
    transport = make_transport()
    assert isinstance(transport, ElasticTransport)
    assert issubclass(UndeclaredError, elaswave.ElasWaveError)
    try:
        SCENARIOS[SCENARIO](transport)
    except BaseException:  # noqa: BLE001 - a rank that merely leaves would be waited for
        traceback.print_exc()
        die()
    transport.close()
    transport.close()


main()
