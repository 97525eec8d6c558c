"""Plain gloo, rebuilt after every loss: slower than the others, and there wherever torch is.

On a loss: tell all members through the job's store, end gloo's connections (which frees whoever is blocked on them),
agree through the store, make a new ProcessGroupGloo. Source: our own design; gloo offers neither abort nor edits.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ReduceOp

from elaswave import agent_link, place
from elaswave.timeouts import Timeouts
from elaswave.transports import ballot, sockets
from elaswave.transports.checked import OPS, CheckedTransport, check_payload, require_capability
from elaswave.transports.deaths import Deaths, Process, own_process
from elaswave.transports.interface import Capabilities, PeerLostError, TransportError, View, make_view

NAMING_S = 1.0
"""longest wait for the name of the dead: a broken connection may be noticed before its cause"""
FOREVER = timedelta(days=365)

_WIDE = (torch.bfloat16, torch.float16, torch.int16)
_NATIVE = (torch.float32, torch.float64, torch.int8, torch.uint8, torch.int32, torch.int64)


class GlooTransport(CheckedTransport):
    """A process group of its own, unknown to ``torch.distributed``. Use from one thread; ``revoke`` from any.

    Threads: one waits in the store for a revocation of the present view, one for deaths (deaths.py).
    """

    capabilities = Capabilities(
        revokes_pending=True,
        agrees=True,
        shrinks_in_place=False,
        grows=False,
        starts_joiners=False,
        has_quorum=True,
        has_witness=True,
        excludes_silent=True,
        fences=True,
        survives_rank_0=True,
        dtypes=frozenset(_NATIVE + _WIDE),
        wide_dtypes=frozenset(_WIDE),
        ops=OPS,
    )
    wider: Mapping[torch.dtype, torch.dtype] = {**CheckedTransport.wider, torch.int16: torch.int32}

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Meet the other ranks of the job at its store. Collective; any launcher that elaswave.join() knows.

        Raises:
            LaunchError: the environment names no place.
            torch.distributed.DistError: the others did not come within the job's meeting time.
        """
        here = place.find(environment)
        by_agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self.capabilities = dataclasses.replace(type(self).capabilities, survives_rank_0=by_agent)
        self._timeouts = Timeouts.from_environment(environment)
        store = ballot.store_of(by_agent, here.master_host or "127.0.0.1", here.master_port, here.rank)
        self._server = store  # on rank 0 perhaps the server itself
        # Each has a connection of its own: a call that waits holds up all others on its connection.
        self._store, self._news_in, self._news_out = (_prefixed(store.clone()) for _ in range(3))
        self._store.set_timeout(timedelta(seconds=self._timeouts.meeting_s))
        self._own, self._epoch = here.rank, 0
        self._members: tuple[int, ...] = tuple(range(here.num_ranks))
        self._watcher: threading.Thread
        self._lock = threading.RLock()  # guards the error, the connections and the epoch they belong to
        self._error: PeerLostError | None = None
        self._connections: frozenset[sockets.Connection] = frozenset()
        self._is_open = True
        link, processes = agent_link.of_process(environment), self._meet_processes(here.num_ranks)
        self._deaths = Deaths(processes, here.rank, link, self._died)
        self._device = dist.ProcessGroupGloo.create_default_device()
        group, made = self._connect(0, self._members)
        # Not before all are connected may one of them go on, and perhaps end its connections.
        if not ballot.all_well(self._store, 0, self._members, here.rank, True, self._deaths, self._timeouts.meeting_s):
            raise TransportError(f"rank {here.rank} of {here.num_ranks}: not all ranks came to the first meeting")
        self._install(group, made, 0, self._members)

    @property
    def rank(self) -> int:
        return self._members.index(self._own)

    @property
    def num_ranks(self) -> int:
        return len(self._members)

    @property
    def epoch(self) -> int:
        return self._epoch

    def revoke(self, why: str) -> None:
        """See ElasticTransport."""
        with self._lock:
            if self._error is not None:
                return
            lost = self._lost()
            news = json.dumps({"why": why, "lost": lost})
            self._fail(self._epoch, why, lost)
            keys = [f"news/{self._epoch}/{one}" for one in self._members]
        try:
            self._news_out.multi_set(keys, [news] * len(keys))
        except RuntimeError as error:
            raise self._store_is_gone(error) from error

    def recover(self, payload: bytes = b"") -> View:
        """See ElasticTransport."""
        check_payload(payload)
        try:
            self.revoke("recovery")
            return self._recover(payload)
        except dist.DistError as error:
            raise self._store_is_gone(error) from error

    def grow(self, num_joiners: int, payload: bytes = b"") -> View:
        """Not declared."""
        require_capability(self, "grows")
        raise NotImplementedError

    def close(self) -> None:
        """See ElasticTransport."""
        if not self._is_open:
            return
        self._is_open = False
        self._deaths.close()
        self._news_out.set(f"news/{self._epoch}/{self._own}", json.dumps({"why": "closed", "lost": []}))
        self._watcher.join()

    def _reduce(self, flat: torch.Tensor, op: ReduceOp.RedOpType) -> None:
        options = dist.AllreduceOptions()
        options.reduceOp = ReduceOp(op)
        self._attempt("all_reduce", lambda: self._group.allreduce([flat], options))

    def _spread(self, flat_bytes: torch.Tensor, src: int) -> None:
        self._attempt("broadcast", lambda: self._group.broadcast(flat_bytes, src))

    def _collect(self, flat_bytes: torch.Tensor) -> list[torch.Tensor]:
        parts = [torch.empty_like(flat_bytes) for _ in range(self.num_ranks)]
        self._attempt("all_gather", lambda: self._group.allgather([parts], [flat_bytes]))
        return parts

    def _meet(self) -> None:
        self._attempt("barrier", self._group.barrier)

    def _broken(self) -> PeerLostError | None:
        return self._error

    def _attempt(self, doing: str, start: Callable[[], Any]) -> None:
        try:
            start().wait()
        except RuntimeError as error:
            if self._error is None and not self._lost():
                self._deaths.wait(NAMING_S)
            self.revoke(f"{doing} failed")
            known = self._error
            assert known is not None
            lost = set(known.ranks) | set(self._lost())
            raise PeerLostError(lost, known.epoch, f"{doing} ended: {known.why}") from error

    def _recover(self, payload: bytes) -> View:
        before, members, epoch = self._members, self._members, self._epoch
        patience_s = self._timeouts.failure_timeout_s
        while True:
            outcome = ballot.agree(self._store, epoch, members, self._own, payload, self._deaths, patience_s)
            members, epoch = outcome.members, epoch + 1
            group, made = self._connect(epoch, members)
            if ballot.all_well(self._store, epoch, members, self._own, group is not None, self._deaths, patience_s):
                self._install(group, made, epoch, members)
                return make_view(epoch, len(before), [before.index(one) for one in members], outcome.payloads)
            sockets.shut_down(made)

    def _connect(self, epoch: int, members: Sequence[int]) -> tuple[Any, frozenset[sockets.Connection]]:
        """A new group and its connections; no group if somebody was not there."""
        gloo: Any = dist.ProcessGroupGloo  # its annotations lack the options
        options = gloo._Options()
        options._devices = [self._device]
        options._timeout = timedelta(seconds=self._timeouts.failure_timeout_s)
        before = sockets.connections()
        try:
            store = dist.PrefixStore(f"gloo/{epoch}", self._store)
            group = dist.ProcessGroupGloo(store, members.index(self._own), len(members), options)
        except RuntimeError:
            if epoch == 0:
                raise
            group = None  # the members hear of it, and agree again
        return group, sockets.connections() - before

    def _install(self, group: Any, made: frozenset[sockets.Connection], epoch: int, members: tuple[int, ...]) -> None:
        with self._lock:
            self._group, self._connections, self._epoch, self._members = group, made, epoch, members
            self._error = None
        if epoch:
            self._watcher.join()  # it has heard of the revocation that ended the view before
        self._watcher = threading.Thread(target=self._watch, args=(epoch,), name="elaswave-gloo-news", daemon=True)
        self._watcher.start()
        if lost := self._lost():
            self._died(members[lost[0]])

    def _watch(self, epoch: int) -> None:
        key = f"news/{epoch}/{self._own}"
        try:
            self._news_in.wait([key], FOREVER)
            news = json.loads(self._news_in.get(key))
        except RuntimeError as error:
            news = {"why": f"the job's store is gone: {error}", "lost": []}
        if self._is_open:
            self._fail(epoch, news["why"], news["lost"])

    def _died(self, member: int) -> None:
        """News of a death: whoever hears it first ends the operations of all, whatever they wait for."""
        if member in self._members and self._is_open:
            try:
                self.revoke("a member died")
            except TransportError as error:  # kept: the next operation says so
                self._fail(self._epoch, str(error), self._lost())

    def _fail(self, epoch: int, why: str, lost: Sequence[int]) -> None:
        with self._lock:
            if epoch == self._epoch and self._error is None:
                self._error = PeerLostError(lost, epoch, why)
                sockets.shut_down(self._connections)

    def _lost(self) -> list[int]:
        return [self._members.index(one) for one in self._deaths.proven() if one in self._members]

    def _meet_processes(self, num_ranks: int) -> list[Process]:
        self._store.set(f"process/{self._own}", json.dumps(dataclasses.asdict(own_process(self._own))))
        return [Process(**json.loads(self._store.get(f"process/{number}"))) for number in range(num_ranks)]

    def _store_is_gone(self, error: BaseException) -> TransportError:
        remedy = "" if self.capabilities.survives_rank_0 else (
            "; rank 0 hosted it (survives_rank_0 is not declared): start under 'elastates run' or torchrun, whose "
            "agents host it"
        )  # fmt: skip
        return TransportError(
            f"rank {self.rank} of {self.num_ranks}: the job's store cannot be reached{remedy}: {error}"
        )


def _prefixed(store: Any) -> Any:
    return dist.PrefixStore("elaswave/transport", store)
