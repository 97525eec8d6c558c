"""Groups of torch's own fault tolerance contract (2.15): of no use until ``reconfigure()`` says who is in them.

Who calls ``reconfigure()``, torchft's Manager for one (elaswave/torchft_group.py), decides about members; nothing here
agrees on views. Processes that met in different stores need the same ``ELASWAVE_JOB`` and ``ELASWAVE_SECRET`` to be let
in by each other.
"""

from __future__ import annotations

import itertools
from typing import Any

from elaswave.backend import FIRST_EPOCH, start_endpoint

import _elastates

_numbers = itertools.count()


def create_awaiting_group(options: Any) -> Any:
    """One member's side of a group that awaits its first ``reconfigure()``: with the rank and size that torch gave.

    Not a collective. Every operation fails until then.

    Args:
        options: ``torch.distributed``'s ``_DistributedBackendOptions``.
    """
    timeout_s = options.timeout.total_seconds()
    return awaiting_group(options.store, options.group_id, options.group_rank, options.group_size, timeout_s)


def awaiting_group(store: Any, common_name: str, rank: int, size: int, timeout_s: float) -> Any:
    """The same without torch's options.

    Args:
        store: which says what job this is, unless the environment does.
        common_name: by which all members call the group.
        rank: and ``size``: what it reports until the first ``reconfigure()``.
        timeout_s: of its operations, seconds.
    """
    endpoint = start_endpoint(store)
    name = f"{common_name}@awaiting#{next(_numbers)}"
    group = endpoint.make_group(name, FIRST_EPOCH, [endpoint.handle], timeout_s)
    process_group = _elastates.ElasticProcessGroup(store, endpoint, group, timeout_s)
    process_group.await_reconfigure(rank, size, "the group has no members yet: call reconfigure()")
    return process_group
