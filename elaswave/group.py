"""A process group whose membership can be edited: revoke, agree, edit; see docs/protocol.md for what is promised.

try:
    dist.all_reduce(gradients)
except RuntimeError as error:
    if not elaswave.lost(error):
        raise
    view = elaswave.ElasticGroup.of(dist.group.WORLD).recover(payload=step.to_bytes(8))
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from typing import Any, ClassVar

import torch.distributed as dist

from elaswave import timeline
from elaswave.errors import FencedError, NoQuorumError, ViewError
from elaswave.losses import asks_for_a_view
from elaswave.views import ViewService

import _elastates


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """Who is in the group from an epoch on, and where each came from."""

    epoch: int
    ranks: tuple[int | None, ...]
    """by new rank: the rank in the view before; None for one who has joined"""
    payloads: tuple[bytes, ...]
    """by new rank: what each brought along to the agreement, equal on all members"""
    lost: tuple[int, ...]
    """ranks in the view before that are not in this one"""
    handles: tuple[str, ...] = dataclasses.field(repr=False)
    """by new rank: what leads to the member"""

    @property
    def joined(self) -> tuple[int, ...]:
        """New ranks that were not in the view before."""
        return tuple(rank for rank, old in enumerate(self.ranks) if old is None)


def view_from(agreed: tuple[int, list[str], list[int | None], list[bytes]], num_ranks_before: int) -> View:
    """The native keeper's answer as a view."""
    epoch, handles, ranks, payloads = agreed
    return View(
        epoch=epoch,
        ranks=tuple(ranks),
        payloads=tuple(payloads),
        lost=tuple(sorted(set(range(num_ranks_before)) - {rank for rank in ranks if rank is not None})),
        handles=tuple(handles),
    )


def announce_joiner(store: Any, name: str, handle: str) -> None:
    """Say in the job's store that a process wants to join a group."""
    store.set(f"elastic/{name}/joiner/{store.add(f'elastic/{name}/joiners', 1)}", handle)


def joiners(store: Any, name: str) -> list[str]:
    """Handles of all that ever wanted to join a group."""
    num_joiners = store.add(f"elastic/{name}/joiners", 0)
    return [store.get(f"elastic/{name}/joiner/{number}").decode() for number in range(1, num_joiners + 1)]


class ElasticGroup:
    """The default process group of backend "elastic", as one that can be edited.

    One training thread calls; everything waits without the GIL. Sub-groups are not edited along: those with a lost
    member fail like this one, and after an edit ``dist.new_group`` makes them anew.
    """

    _groups: ClassVar[weakref.WeakKeyDictionary[Any, ElasticGroup]] = weakref.WeakKeyDictionary()

    def __init__(self, process_group: Any, service: ViewService, store: Any, view: View | None) -> None:
        """Made by the backend, with the process group; use ``of()``."""
        self.view = view
        """the last that was taken up: of ``recover()``, or the one in which this process joined; None at the start"""
        self._process_group = weakref.ref(process_group)
        self._service = service
        self._store = store
        self._num_tried = 0  # of those who have announced themselves in the store
        self._agreed_num_ranks = process_group.size()
        self._groups[process_group] = self

    @classmethod
    def of(cls, process_group: Any = None) -> ElasticGroup:
        """The editable side of a process group; the default one if none is given.

        Raises:
            ViewError: it has none: another backend, or a sub-group.
        """
        group = process_group if process_group is not None else dist.distributed_c10d._get_default_group()
        if group not in cls._groups:
            raise ViewError(
                f"expected the default process group of backend 'elastic', got {type(group).__name__}; sub-groups are "
                "made anew after an edit of the default group"
            )
        return cls._groups[group]

    @property
    def epoch(self) -> int:
        """Of the view that is installed; the first is 1."""
        return int(self._comm.epoch)

    @property
    def rank(self) -> int:
        """In the view that is installed."""
        return int(self._comm.rank)

    @property
    def num_ranks(self) -> int:
        """Of the view that is installed."""
        return int(self._comm.size)

    @property
    def waiting(self) -> int:
        """How many want to join and have been connected to here."""
        return int(self._service.keeper.num_candidates)

    def revoke(self, why: str = "a member asked for a new view") -> None:
        """Fail every operation of the group on all its members until a newer view is installed. Idempotent."""
        self._comm.revoke(asks_for_a_view(why, self.epoch))

    def agree(self, payload: bytes = b"", *, timeout_s: float | None = None) -> View:
        """Agree on the next view with all members that live. A collective of those; changes no group yet.

        Args:
            payload: told to all; at most 4096 bytes, among more than three members about 14,000 over their number.
            timeout_s: for this call; five times the failure timeout if None, by when whoever is silent has been fenced.

        Raises:
            TimeoutError: not decided yet; the message names who is missing, and the call may be repeated.
            NoQuorumError, FencedError: this process is out. As things are set up the process has ended by then, with
                exit code 87 or 86.
        """
        self._service.check()
        patience_s = 5 * self._service.timeouts.failure_timeout_s if timeout_s is None else timeout_s
        try:
            agreed = self._service.keeper.agree(payload, patience_s)
        except _elastates.StatusError as error:
            raise self._reason(error) from error
        view = view_from(agreed, self._agreed_num_ranks)
        self._agreed_num_ranks = len(view.ranks)
        return view

    def edit(self, view: View, *, timeout_s: float | None = None) -> None:
        """Take up an agreed view: drop who is out, connect who is new, compute the orders anew.

        Raises:
            ViewError: a member of the view cannot be reached any more; the next ``recover()`` leaves it out.
        """
        from elaswave.backend import adopt_view

        patience_s = self._service.timeouts.failure_timeout_s if timeout_s is None else timeout_s
        try:
            self._service.endpoint.install(self._comm, view.epoch, list(view.handles), patience_s)
        except (_elastates.StatusError, TimeoutError) as error:
            raise ViewError(f"epoch {view.epoch} could not be taken up: {error.args[-2:][0]}") from error
        adopt_view(self._process_group())

    def recover(self, payload: bytes = b"", *, timeout_s: float | None = None) -> View:
        """Revoke, agree, edit: what a member does after a loss, or to let others in. A collective of all that live.

        Returns once the group works again, in the view that all its members have got. Where somebody dies before it
        is taken up they agree again; ``ranks`` and ``lost`` count from the view that the group worked in before.
        """
        timeline.note("loss", rank=self.rank)
        num_ranks_before, origins = self.num_ranks, tuple[int | None, ...](range(self.num_ranks))
        while True:
            with timeline.phase("agree"):
                self.revoke()
                timeline.note("revoked", rank=self.rank)
                view = self.agree(payload, timeout_s=timeout_s)
                timeline.note("agreed", rank=self.rank, epoch=view.epoch)
            origins = tuple(None if rank is None else origins[rank] for rank in view.ranks)
            with timeline.phase("edit"), contextlib.suppress(ViewError):  # somebody has died since: all find that out
                self.edit(view)
                timeline.note("edited", rank=self.rank, epoch=view.epoch)
                lost = set(range(num_ranks_before)).difference(origins)
                self.view = dataclasses.replace(view, ranks=origins, lost=tuple(sorted(lost)))
                return self.view

    def grow(self, payload: bytes = b"", *, timeout_s: float | None = None) -> View:
        """``recover()`` that takes in those who want to join: a collective of all members, at a step boundary.

        Under ``elastates run`` the agents name them; otherwise the job's store does, which must still be there. Each is
        tried once: whoever cannot be reached stays out, and its ``init_process_group`` fails.

        Args:
            payload: as in ``agree``.
            timeout_s: for making a link to each, and for the agreement.

        Raises:
            ViewError: the store is gone.
        """
        patience_s = self._service.timeouts.failure_timeout_s if timeout_s is None else timeout_s
        try:
            announced = joiners(self._store, self._service.name)
        except dist.DistError as error:
            raise ViewError(f"the job's store, which names those who want to join, is gone: {error}") from error
        for handle in announced[self._num_tried :]:
            with contextlib.suppress(_elastates.StatusError, TimeoutError):
                self._service.endpoint.connect([handle], patience_s)
                self._service.add_candidate(handle)
        self._num_tried = len(announced)
        return self.recover(payload, timeout_s=timeout_s)

    @property
    def _comm(self) -> Any:
        group = self._process_group()
        if group is None:
            raise ViewError("the process group has been destroyed")
        return group.comm_group

    def _reason(self, error: Exception) -> ViewError:
        out, text = self._service.keeper.out, str(error.args[1])
        return {"fenced": FencedError, "no_quorum": NoQuorumError}.get(out, ViewError)(text)
