"""What transports share: checked arguments, element types that the library below lacks, and scratch memory.

An operation runs on scratch memory and its result is copied on success, so that an interrupted one leaves no garbage
in a gradient: whoever does the step again finds its own addends.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping

import torch
from torch.distributed import ReduceOp

from elaswave.transports.interface import Capabilities, ElasticTransport, PeerLostError, TransportError, UndeclaredError

OPS = frozenset({ReduceOp.SUM, ReduceOp.AVG, ReduceOp.PRODUCT, ReduceOp.MIN, ReduceOp.MAX})


class CheckedTransport(ElasticTransport):
    """Implements the operations by four hooks, which see flat, contiguous tensors that nobody else holds.

    A hook raises PeerLostError once it has revoked, or TransportError.
    """

    capabilities: Capabilities
    wider: Mapping[torch.dtype, torch.dtype] = {torch.bfloat16: torch.float32, torch.float16: torch.float32}
    """in which type those are reduced that the hook cannot or should not reduce"""

    @abc.abstractmethod
    def _reduce(self, flat: torch.Tensor, op: ReduceOp.RedOpType) -> None:
        """All-reduce in place; never AVG, never a type of ``wider``."""

    @abc.abstractmethod
    def _spread(self, flat_bytes: torch.Tensor, src: int) -> None:
        """Broadcast bytes in place."""

    @abc.abstractmethod
    def _collect(self, flat_bytes: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's bytes, as many on each."""

    @abc.abstractmethod
    def _meet(self) -> None:
        """Barrier."""

    @abc.abstractmethod
    def _broken(self) -> PeerLostError | None:
        """Why the present view is revoked; None if it is not."""

    def all_reduce(self, tensor: torch.Tensor, op: ReduceOp.RedOpType = ReduceOp.SUM) -> None:
        """See ElasticTransport."""
        self._check(tensor)
        self._check_reduction(tensor.dtype, op)
        scratch = tensor.detach().to(self.wider.get(tensor.dtype, tensor.dtype), copy=True).reshape(-1).contiguous()
        self._reduce(scratch, ReduceOp.SUM if op == ReduceOp.AVG else op)
        if op == ReduceOp.AVG:
            scratch /= self.num_ranks
        _put(scratch, tensor)

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        """See ElasticTransport."""
        self._check(tensor)
        if not 0 <= src < self.num_ranks:
            raise ValueError(f"src must be a rank from 0 to {self.num_ranks - 1}, got {src}")
        scratch = _bytes_of(tensor)
        self._spread(scratch, src)
        if src != self.rank:
            _put(scratch.view(tensor.dtype), tensor)

    def all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """See ElasticTransport."""
        self._check(tensor)
        return [part.view(tensor.dtype).reshape(tensor.shape) for part in self._collect(_bytes_of(tensor))]

    def barrier(self) -> None:
        """See ElasticTransport."""
        self._check_open()
        self._meet()

    def _check(self, tensor: torch.Tensor) -> None:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"expected a torch.Tensor, got {type(tensor).__name__}")
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            raise ValueError(
                f"expected a dense tensor of CPU memory, got one of {tensor.device} and {tensor.layout}: copy it with "
                ".cpu(), or use backend 'elastic', which moves CUDA tensors"
            )
        self._check_open()

    def _check_open(self) -> None:
        if error := self._broken():
            raise PeerLostError(error.ranks, error.epoch, error.why)

    def _check_reduction(self, dtype: torch.dtype, op: ReduceOp.RedOpType) -> None:
        can = self.capabilities
        if dtype not in can.dtypes:
            names = ", ".join(sorted(str(one).removeprefix("torch.") for one in can.dtypes))
            raise UndeclaredError(f"{type(self).__name__} cannot reduce {dtype}; it can: {names}")
        if op not in can.ops or (op == ReduceOp.AVG and not dtype.is_floating_point):
            raise UndeclaredError(
                f"{type(self).__name__} cannot reduce {dtype} by {op}; it can: "
                f"{', '.join(sorted(one.name for one in can.ops))} (AVG of floating point only)"
            )


def require_capability(transport: ElasticTransport, name: str) -> None:
    """Raise UndeclaredError unless the transport declares it."""
    if not getattr(transport.capabilities, name):
        raise UndeclaredError(f"{type(transport).__name__} does not declare {name!r} (docs/transports.md)")


def check_payload(payload: bytes) -> None:
    """Raise TypeError unless a view can carry it."""
    if not isinstance(payload, bytes):
        raise TypeError(f"payload must be bytes, got {type(payload).__name__}")


def failure(transport: ElasticTransport, doing: str, error: BaseException) -> TransportError:
    """The error of the library below, with who and what."""
    return TransportError(
        f"rank {transport.rank} of {transport.num_ranks} (epoch {transport.epoch}): {doing} failed: {error}"
    )


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)


def _put(flat: torch.Tensor, tensor: torch.Tensor) -> None:
    with torch.no_grad():
        tensor.copy_(flat.reshape(tensor.shape))
