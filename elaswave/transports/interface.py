"""What every transport offers, how it says what it cannot do, and what it raises."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable

import torch
from torch.distributed import ReduceOp

from elaswave.errors import ElasWaveError


class TransportError(ElasWaveError):
    """A transport cannot be made, or the library below it failed of something else than a lost member."""


class UndeclaredError(TransportError):
    """Asked for what the transport's capabilities do not contain."""


class PeerLostError(TransportError):
    """An operation ended because a member is gone, or because somebody revoked. ``recover()`` is the way on.

    ``elaswave.lost(error)`` reads the same from the text.
    """

    def __init__(self, ranks: Iterable[int], epoch: int, why: str) -> None:
        """``ranks``: of this epoch, those known to be lost; empty when nothing but the revocation is known."""
        self.ranks = tuple(sorted(ranks))
        self.epoch = epoch
        self.why = why
        names = ", ".join(map(str, self.ranks))
        super().__init__(f"{why} [elastic epoch {epoch}, lost ranks {names}]; recover() agrees on who goes on")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a transport can do. What is not declared raises ``UndeclaredError``."""

    revokes_pending: bool
    """one member's revoke ends the operations in which the others wait"""
    agrees: bool
    """all survivors get the same view and payloads, although more members die meanwhile"""
    shrinks_in_place: bool
    """survivors keep their connections; if not, all of them are made anew"""
    grows: bool
    """new members can be taken in"""
    starts_joiners: bool
    """``grow`` starts the new processes itself; if not, it waits for processes that ask to be taken in"""
    has_quorum: bool
    """a side of a partition that is not the majority of those not proven dead stops"""
    has_witness: bool
    """an exact tie is broken, so that one side goes on"""
    excludes_silent: bool
    """``recover`` ends although a living member never answers (stopped, hung, unreachable)"""
    fences: bool
    """a silent member is killed before the others go on without it, wherever that is possible"""
    survives_rank_0: bool
    """rank 0 may die like any other"""
    dtypes: frozenset[torch.dtype]
    """of ``all_reduce``; the other operations move any element type"""
    wide_dtypes: frozenset[torch.dtype]
    """those of ``dtypes`` that are summed in a wider type and rounded once"""
    ops: frozenset[ReduceOp.RedOpType]
    """of ``all_reduce``"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """An agreed membership; the same on all members."""

    epoch: int
    """grows with every view"""
    ranks: tuple[int | None, ...]
    """by new rank: the member's rank in the view before, None for who has just joined"""
    payloads: tuple[bytes, ...]
    """by new rank: what the member handed to ``recover`` or ``grow``"""
    lost: tuple[int, ...]
    """ranks in the view before that are members no more"""
    joined: tuple[int, ...]
    """new ranks of who has just joined"""


def make_view(epoch: int, num_before: int, members: Iterable[int | None], payloads: Iterable[bytes]) -> View:
    """The view whose members had these ranks (None: none) among ``num_before`` members before."""
    ranks = tuple(members)
    return View(
        epoch=epoch,
        ranks=ranks,
        payloads=tuple(payloads),
        lost=tuple(sorted(set(range(num_before)) - set(ranks))),
        joined=tuple(new for new, old in enumerate(ranks) if old is None),
    )


class ElasticTransport(abc.ABC):
    """A group of ranks that move tensors of CPU memory; any of them may die at any time.

    The life of a group: operations, until one raises ``PeerLostError``; then ``recover``, by all who are left; then
    operations again, under new ranks. All collectives are called by all members in the same order, from one thread.
    An operation that raises leaves its tensor as it was.
    """

    capabilities: Capabilities

    @property
    @abc.abstractmethod
    def rank(self) -> int:
        """Of this process in the present view."""

    @property
    @abc.abstractmethod
    def num_ranks(self) -> int:
        """Of the present view."""

    @property
    @abc.abstractmethod
    def epoch(self) -> int:
        """Of the present view."""

    @abc.abstractmethod
    def all_reduce(self, tensor: torch.Tensor, op: ReduceOp.RedOpType = ReduceOp.SUM) -> None:
        """Replace ``tensor`` on every rank by the reduction over all ranks. Collective.

        Raises:
            PeerLostError: a member is lost; the group is revoked, ``tensor`` is unchanged.
            UndeclaredError: element type or operation is none that ``capabilities`` has.
        """

    @abc.abstractmethod
    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        """Replace ``tensor`` on every rank by that of rank ``src``. Collective. Any element type."""

    @abc.abstractmethod
    def all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's ``tensor``, by rank; shapes and element types must be the same. Collective."""

    @abc.abstractmethod
    def barrier(self) -> None:
        """Return once all ranks have called it. Collective."""

    @abc.abstractmethod
    def revoke(self, why: str) -> None:
        """End every operation of this view on every member, with PeerLostError. Idempotent; not a collective."""

    @abc.abstractmethod
    def recover(self, payload: bytes = b"") -> View:
        """Revoke, agree with all who are left, and go on with them. Collective of the survivors.

        Once this returns, ranks, epoch and payloads are the same on all members, and operations work again.

        Raises:
            NoQuorumError: too few are left to be sure that the others do not go on as well.
            FencedError: the others went on without this process.
        """

    @abc.abstractmethod
    def grow(self, num_joiners: int, payload: bytes = b"") -> View:
        """Take ``num_joiners`` processes in, behind the present ranks, which stay. Collective of the members.

        Raises:
            PeerLostError: somebody died meanwhile; nobody was taken in, ``recover()`` and try again.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of everything. Idempotent; not a collective."""
