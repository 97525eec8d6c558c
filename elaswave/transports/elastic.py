"""Backend "elastic" (elaswave/group.py) behind the interface of the other transports: an adapter, and nothing more."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ReduceOp

from elaswave import losses
from elaswave.group import ElasticGroup
from elaswave.transports.checked import OPS, CheckedTransport, check_payload, failure
from elaswave.transports.interface import Capabilities, PeerLostError, View, make_view

_WIDE = (torch.bfloat16, torch.float16)
_NATIVE = (torch.float32, torch.float64, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


class ElasticGroupTransport(CheckedTransport):
    """The default process group of backend "elastic"; it belongs to whoever made it, and stays when this is closed.

    A process that lost its quorum, or was fenced, ends by itself with its exit status (elaswave/exits.py).
    """

    capabilities = Capabilities(
        revokes_pending=True,
        agrees=True,
        shrinks_in_place=True,
        grows=True,
        starts_joiners=False,
        has_quorum=True,
        has_witness=False,
        excludes_silent=True,
        fences=True,
        survives_rank_0=True,
        dtypes=frozenset(_NATIVE + _WIDE),
        wide_dtypes=frozenset(_WIDE),
        ops=OPS,
    )

    def __init__(self, process_group: Any = None) -> None:
        """Wrap a process group, the default one if None.

        Raises:
            ViewError: it is none of backend "elastic".
        """
        self._process_group: Any = process_group or dist.distributed_c10d._get_default_group()
        self._group = ElasticGroup.of(self._process_group)
        self._error: PeerLostError | None = None
        has_witness = bool(os.environ.get("ELASWAVE_WITNESS"))
        self.capabilities = dataclasses.replace(type(self).capabilities, has_witness=has_witness)

    @property
    def rank(self) -> int:
        return self._group.rank

    @property
    def num_ranks(self) -> int:
        return self._group.num_ranks

    @property
    def epoch(self) -> int:
        return self._group.epoch

    def revoke(self, why: str) -> None:
        """See ElasticTransport."""
        self._group.revoke(why)

    def recover(self, payload: bytes = b"") -> View:
        """See ElasticTransport."""
        check_payload(payload)
        return self._take_up(self.num_ranks, self._group.recover(payload))

    def grow(self, num_joiners: int, payload: bytes = b"") -> View:
        """See ElasticTransport. Takes in all who wait; that they do, see ``ElasticGroup.waiting``."""
        check_payload(payload)
        if num_joiners < 1:
            raise ValueError(f"num_joiners must be at least 1, got {num_joiners}")
        return self._take_up(self.num_ranks, self._group.grow(payload))

    def close(self) -> None:
        """See ElasticTransport."""

    def _reduce(self, flat: torch.Tensor, op: ReduceOp.RedOpType) -> None:
        self._attempt("all_reduce", lambda: dist.all_reduce(flat, op, group=self._process_group))

    def _spread(self, flat_bytes: torch.Tensor, src: int) -> None:
        self._attempt("broadcast", lambda: dist.broadcast(flat_bytes, group_src=src, group=self._process_group))

    def _collect(self, flat_bytes: torch.Tensor) -> list[torch.Tensor]:
        parts = [torch.empty_like(flat_bytes) for _ in range(self.num_ranks)]
        self._attempt("all_gather", lambda: dist.all_gather(parts, flat_bytes, group=self._process_group))
        return parts

    def _meet(self) -> None:
        self._attempt("barrier", lambda: dist.barrier(group=self._process_group))

    def _broken(self) -> PeerLostError | None:
        return self._error

    def _attempt(self, doing: str, call: Callable[[], object]) -> None:
        try:
            call()
        except RuntimeError as error:
            told = losses.lost(error)
            why = self._process_group.comm_group.why_revoked  # without a loss, where a member merely said so
            if told is None and not why:
                raise failure(self, doing, error) from error
            self._group.revoke(f"{doing} met a lost member")
            self._error = PeerLostError(told.ranks if told else (), self.epoch, f"{doing} ended: {_without_mark(why)}")
            raise self._error from error

    def _take_up(self, num_before: int, view: Any) -> View:
        self._error = None
        return make_view(view.epoch, num_before, view.ranks, view.payloads)


def _without_mark(why: str) -> str:
    """A reason of the native group without the mark that PeerLostError writes itself."""
    return why.partition(" [elastic epoch")[0]
