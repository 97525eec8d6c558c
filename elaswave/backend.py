"""The backend "elastic" of ``torch.distributed``: how the members of a new group find each other.

The first group of a process starts its endpoint: the links that all its groups and sub-groups share. The members of
the default group exchange their handles through torch's store; sub-groups take their members from the default group.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import socket
import threading
import time
from collections import Counter
from typing import Any

import torch.distributed as dist

from elaswave import exits, witness
from elaswave.errors import ElasWaveError
from elaswave.group import ElasticGroup, View, announce_joiner, view_from
from elaswave.timeouts import Timeouts
from elaswave.views import ViewService

import _elastates

FIRST_EPOCH = 1
FIRST_LOOK_S, LOOK_S = 0.005, 0.5
"""How often who waits for others, at the start or to be let in, looks whether they came, died, or finished."""
logger = logging.getLogger("elaswave")

_lock = threading.Lock()
_endpoint: Any = None
_job = ""
"""Which job this process belongs to; known once there is an endpoint."""
_num_made: Counter[tuple[str, int]] = Counter()
"""Groups made so far by name and epoch of the default group: a name that comes again is another group."""


def create_process_group(options: Any, _backend_options: Any) -> Any:
    """Make one member's side of a group, as ``torch.distributed`` asks for it.

    A collective of the group's members. Returns once there is a link to each of them.

    Args:
        options: ``torch.distributed``'s ``_DistributedBackendOptions``.

    Raises:
        ElasWaveError: a member did not come or cannot be reached within the group's timeout; the message names it.
    """
    timeout_s = options.timeout.total_seconds()
    endpoint = start_endpoint(options.store)
    default = _default_comm_group()
    if default is None or not options.global_ranks_in_group:
        return _create_default_group(options, endpoint)
    everybody = default.handles()
    handles = [everybody[rank] for rank in options.global_ranks_in_group]
    name = _next_name(options.group_id, default.epoch)
    group = _make_comm_group(options, endpoint, name, FIRST_EPOCH, handles)
    return _elastates.ElasticProcessGroup(options.store, endpoint, group, timeout_s)


def _create_default_group(options: Any, endpoint: Any) -> Any:
    """The group whose views are kept. Its members meet in the store; one who joins waits for a welcome instead."""
    name = _next_name(options.group_id, 0)
    service = ViewService(endpoint, name, witness.from_environment(), _job)
    atexit.register(service.close)
    if int(os.environ.get("ELASWAVE_ATTEMPT", "0")):
        announce_joiner(options.store, name, endpoint.handle)
        view = _await_welcome(service)
        epoch, handles = view.epoch, list(view.handles)
    else:
        view, epoch, handles = None, FIRST_EPOCH, _exchange_handles(options, name, service)
        service.keeper.open(epoch, handles)
    group = _make_comm_group(options, endpoint, name, epoch, handles)
    process_group = _elastates.ElasticProcessGroup(options.store, endpoint, group, options.timeout.total_seconds())
    ElasticGroup(process_group, service, options.store, view)
    return process_group


def _await_welcome(service: ViewService) -> View:
    """The view in which this newcomer is let in; ends the process with 0 if the job ends before.

    Raises:
        TimeoutError: nobody lets it in.
    """
    end_s = time.monotonic() + service.timeouts.meeting_s
    while True:
        try:
            view = view_from(service.keeper.await_welcome(LOOK_S), num_ranks_before=0)
            service.tell_of_entry()
            return view
        except TimeoutError:
            if service.ranks.is_too_late():
                logger.warning("the job has finished before this newcomer was let in")
                raise SystemExit(exits.FINISHED) from None
            if time.monotonic() > end_s:
                raise


def _make_comm_group(options: Any, endpoint: Any, name: str, epoch: int, handles: list[str]) -> Any:
    try:
        return endpoint.make_group(name, epoch, handles, options.timeout.total_seconds())
    except (_elastates.StatusError, TimeoutError) as error:
        raise ElasWaveError(f"rank {options.group_rank} of {options.group_size}: {error.args[-2:][0]}") from error


def start_endpoint(store: Any = None) -> Any:
    """The process's endpoint, started by the first call; that one needs the job's store unless the environment
    (``ELASWAVE_JOB``, ``ELASWAVE_SECRET``) says which job this is."""
    global _endpoint, _job
    with _lock:
        if _endpoint is None:
            _job, secret = _job_and_secret(store)
            timeouts = Timeouts.from_environment()
            addresses = _addresses_to_listen_on()
            try:
                _endpoint = _elastates.Endpoint.start(_job, secret, addresses, timeouts.failure_timeout_s)
            except _elastates.StatusError as error:
                where = "ELASWAVE_BIND, else the address on the way to MASTER_ADDR"
                raise ElasWaveError(f"links cannot listen on {addresses} ({where}): {error.args[1]}") from error
            atexit.register(_endpoint.close)
        return _endpoint


def comm_group_of(process_group: Any = None) -> Any:
    """The member list and epoch behind a process group, the default one if none is given.

    Raises:
        ElasWaveError: it is not one of backend "elastic".
    """
    group = process_group if process_group is not None else dist.distributed_c10d._get_default_group()
    if not isinstance(group, _elastates.ElasticProcessGroup):
        raise ElasWaveError(
            f"expected a process group of backend 'elastic', got {type(group).__name__} of backend "
            f"{dist.get_backend(group)!r}; call init_process_group('elastic')"
        )
    return group.comm_group


def adopt_view(process_group: Any = None) -> None:
    """Make torch know the rank and size that a group has after an edit of its view.

    ``get_rank``, ``get_world_size``, DDP and whoever asks the group itself need no more; torch's table of ranks by
    group, which translates ranks of the world into those of a group, is corrected for the default group.
    """
    group: Any = process_group if process_group is not None else dist.distributed_c10d._get_default_group()
    comm_group_of(group)
    group.refresh()
    if group is dist.distributed_c10d._get_default_group():
        dist.distributed_c10d._world.pg_group_ranks[group] = {rank: rank for rank in range(group.size())}


def _default_comm_group() -> Any:
    group = dist.distributed_c10d.GroupMember.WORLD
    return group.comm_group if isinstance(group, _elastates.ElasticProcessGroup) else None


def _next_name(group_id: str, epoch: int) -> str:
    number = _num_made[group_id, epoch]
    _num_made[group_id, epoch] += 1
    return f"{group_id}@{epoch}#{number}"


def _exchange_handles(options: Any, name: str, service: ViewService) -> list[str]:
    """Every member's handle by rank; waits for all of them."""
    options.store.set(f"elastic/{name}/{options.group_rank}", service.endpoint.handle)
    return [_handle_of(rank, options, name, service) for rank in range(options.group_size)]


def _handle_of(rank: int, options: Any, name: str, service: ViewService) -> str:
    key, timeout_s = f"elastic/{name}/{rank}", options.timeout.total_seconds()
    who, end_s = f"rank {options.group_rank}: rank {rank} of {options.group_size}", time.monotonic() + timeout_s
    wait_s = FIRST_LOOK_S
    while True:
        end = service.ranks.end_of_first(rank)  # before the look: what it left behind before its end counts
        if options.store.check([key]):
            return str(options.store.get(key).decode())
        if end:
            raise ElasWaveError(f"{who} {end} before it had joined: a job has to begin with all ranks")
        if time.monotonic() >= end_s:
            raise ElasWaveError(f"{who} did not come within {timeout_s:g} s")
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, LOOK_S)


def _job_and_secret(store: Any) -> tuple[str, str]:
    job, secret = os.environ.get("ELASWAVE_JOB"), os.environ.get("ELASWAVE_SECRET")
    if job and secret:
        return job, secret
    if store is None:
        raise ElasWaveError("which job this process belongs to is not known: set ELASWAVE_JOB and ELASWAVE_SECRET")
    proposed = f"{secrets.token_hex(8)} {secrets.token_hex(16)}"
    job, secret = store.compare_set("elastic/job", "", proposed).decode().split()
    return job, secret


def _addresses_to_listen_on() -> list[str]:
    """``ELASWAVE_BIND``, addresses with commas between them; else the one from which the job's master is reached."""
    if chosen := os.environ.get("ELASWAVE_BIND"):
        return chosen.split(",")
    master = os.environ.get("MASTER_ADDR", "127.0.0.1")
    family, _, _, _, address = socket.getaddrinfo(master, 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:  # sends nothing: asks for a route
        probe.connect(address[:2])
        return [probe.getsockname()[0]]
