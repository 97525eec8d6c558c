"""Who writes to a tier: the job that began last.

Stores have no locks. A job that begins to write says so in ``writer.json``; the one before it, a process that outlived
its machine's replacement perhaps, sees that before it commits or removes anything, and stops copying.
"""

from __future__ import annotations

import json
import os
import secrets
import socket

from datastates.errors import ReplicationError
from datastates.tiers.pace import Pace
from datastates.tiers.stores import Store

NAME = "writer.json"


class Writer:
    """This job's claim to a store."""

    def __init__(self, store: Store, pace: Pace) -> None:
        self._store = store
        self._pace = pace
        self._claim: bytes | None = None

    def check(self) -> None:
        """Claim the store, the first time; later, make sure that nobody has claimed it since.

        Raises:
            ReplicationError: another job writes here now; names it.
        """
        if self._claim is None:
            who = {"host": socket.gethostname(), "pid": os.getpid(), "id": secrets.token_hex(8)}
            claim = json.dumps(who).encode()
            self._pace.retried(lambda: self._store.put(NAME, claim), f"claiming {self._store.url}")
            self._claim = claim
            return
        now = self._pace.retried(self._read, f"reading {NAME} of {self._store.url}")
        if now != self._claim:
            raise ReplicationError(
                f"{self._store.url} is written by {_who(now)} since; end that job, or give each its own URL"
            )

    def _read(self) -> bytes | None:
        try:
            return self._store.get(NAME)
        except FileNotFoundError:
            return None


def _who(claim: bytes | None) -> str:
    try:
        who = json.loads(claim or b"")
        return f"{who['host']} pid {who['pid']}"
    except (ValueError, KeyError, TypeError):
        return "nobody known (writer.json has gone or is damaged)"
