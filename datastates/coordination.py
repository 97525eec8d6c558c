"""How ranks agree about checkpoints: a store of their own, never the trainer's, and a deadline on every wait.

The trainer's store is used once, at construction, to say where ours listens. After that a rank that is stuck in a
collective of the trainer does not keep us from finding out, and a checkpoint never delays a collective.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from datastates import storage_ops
from datastates.errors import CoordinationError, NotOneDirectoryError
from datastates.sight.spans import record, recorders

_constructions: Iterator[int] = itertools.count()
ROUND_TRIP_S = 0.001
"""An answer that takes no longer was there already, or as good as."""
MAX_WAITS = 1024
"""Waits remembered until somebody asks for them."""


@dataclass(frozen=True)
class RankWait:
    """A stretch of monotonic time in which ``rank`` was waited for, after those before it had answered."""

    rank: int
    begin_s: float
    end_s: float


class Channel:
    """A connection of this rank, for one thread; exchanges are told apart by key, so threads have one each.

    A single process has channels too: they answer at once.
    """

    def __init__(self, store: dist.Store | None, rank: int, num_ranks: int) -> None:
        self._store = store
        self.rank = rank
        self.num_ranks = num_ranks
        self._previous: str | None = None
        self._waits: list[RankWait] = []

    def gather(self, key: str, payload: bytes, timeout_s: float) -> list[bytes]:
        """Give ``payload``, get everyone's, by rank. Collective.

        Raises:
            CoordinationError: some ranks did not answer within ``timeout_s`` seconds; names them.
        """
        if self._store is None:
            return [payload]
        self._set(f"{key}/{self.rank}", payload)
        keys = [f"{key}/{rank}" for rank in range(self.num_ranks)]
        answers = self._wait(keys, timeout_s, key, list(range(self.num_ranks)))
        # Everyone who takes part in this exchange has read the previous one: its keys can go.
        if self._previous is not None:
            self._store.delete_key(self._previous)
        self._previous = f"{key}/{self.rank}"
        return answers

    def take_waits(self) -> list[RankWait]:
        """Whose answers were waited for, and when, since the last call."""
        waits, self._waits = self._waits, []
        return waits

    def from_leader(self, key: str, payload: bytes | None, timeout_s: float) -> bytes:
        """Rank 0 gives ``payload``, everyone gets it. Collective.

        Raises:
            CoordinationError: rank 0 did not answer within ``timeout_s`` seconds.
        """
        if self._store is None:
            assert payload is not None
            return payload
        if self.rank == 0:
            assert payload is not None
            self._set(key, payload)
            return payload
        return self._wait([key], timeout_s, key, [0])[0]

    def forget(self, key: str) -> None:
        """Rank 0: drop an answer that everyone has read."""
        if self._store is not None and self.rank == 0:
            self._store.delete_key(key)

    def tell(self, key: str, payload: bytes) -> None:
        """Rank 0: leave ``payload`` for all others to :meth:`hear`, and go on."""
        if self._store is not None:
            self._set(key, payload)

    def hear(self, key: str, timeout_s: float) -> bytes | None:
        """The other ranks, each once: what rank 0 told; ``None`` if it has said nothing within ``timeout_s`` seconds.

        Raises:
            CoordinationError: rank 0 is gone.
        """
        assert self._store is not None
        try:
            with contextlib.suppress(RuntimeError):  # a timeout, or else the next line finds out
                self._store.wait([key], timedelta(seconds=timeout_s))
            if not self._store.check([key]):
                return None
            payload: bytes = self._store.get(key)
            if self._store.add(f"{key}/heard", 1) == self.num_ranks - 1:
                self._store.delete_key(f"{key}/heard")
                self._store.delete_key(key)
            return payload
        except RuntimeError as error:
            raise CoordinationError(f"{key}: rank {self.rank} lost the checkpoint store, which rank 0 hosts") from error

    def leave(self, timeout_s: float) -> None:
        """Say that this rank asks nothing any more; rank 0, whose store this is, waits until all have.

        Raises:
            CoordinationError: on rank 0, some ranks have not left within ``timeout_s`` seconds.
        """
        if self._store is not None:
            self._set(f"left/{self.rank}", b"")
            if self.rank == 0:
                ranks = list(range(self.num_ranks))
                self._wait([f"left/{rank}" for rank in ranks], timeout_s, "left", ranks)

    def _set(self, key: str, payload: bytes) -> None:
        assert self._store is not None
        try:
            self._store.set(key, payload)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise CoordinationError(
                f"rank {self.rank} lost the checkpoint store, which rank 0 hosts: {error}"
            ) from error

    def _wait(self, keys: list[str], timeout_s: float, what: str, ranks: list[int]) -> list[bytes]:
        """The values of ``keys``, one after the other, so that it shows who was waited for: ``ranks``, in parallel."""
        end_s = time.monotonic() + timeout_s
        answers = []
        try:
            for key, rank in zip(keys, ranks, strict=True):
                begin_s = time.monotonic()
                answers.append(self._get(key, max(end_s - begin_s, 0.001)))
                self._note(rank, begin_s)
        except RuntimeError as error:
            self._note(ranks[len(answers)], begin_s)
            raise CoordinationError(self._diagnose(keys, timeout_s, what, error)) from error
        return answers

    def _get(self, key: str, timeout_s: float) -> bytes:
        assert self._store is not None
        self._store.set_timeout(timedelta(seconds=timeout_s))
        return self._store.get(key)

    def _note(self, rank: int, begin_s: float) -> None:
        """Remember a wait that was more than a round trip."""
        end_s = time.monotonic()
        if end_s - begin_s > ROUND_TRIP_S and len(self._waits) < MAX_WAITS:
            self._waits.append(RankWait(rank, begin_s, end_s))
            if recorders:
                record(f"wait for rank {rank}", int(begin_s * 1e9))

    def _diagnose(self, keys: list[str], timeout_s: float, what: str, error: Exception) -> str:
        assert self._store is not None
        try:
            missing = [key for key in keys if not self._store.check([key])]
        except RuntimeError:
            return (
                f"{what}: rank {self.rank} lost the checkpoint store, which rank 0 hosts; rank 0 is dead or unreachable"
            )
        if not missing:
            return f"{what}: {error}"
        ranks = "0" if missing == [what] else ", ".join(key.rsplit("/", 1)[1] for key in missing)
        return f"{what}: no answer from rank {ranks} within {timeout_s:.0f} s (dead, hung, or it took no checkpoint)"


class Coordinator:
    """Makes channels; owns the store.

    Construction is collective where ``torch.distributed`` is initialised, unless this process is to be ``alone``.
    """

    def __init__(self, timeout_s: float, alone: bool = False) -> None:
        self.rank, self.num_ranks = 0, 1
        self._server: dist.Store | None = None
        self._address: tuple[str, int] | None = None
        self._timeout = timedelta(seconds=timeout_s)
        if not alone and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self.rank, self.num_ranks = dist.get_rank(), dist.get_world_size()
            self._address = self._rendezvous()

    def channel(self) -> Channel:
        """A new channel, for one thread."""
        store = None
        if self._address is not None:
            host, port = self._address
            store = dist.TCPStore(host, port, None, False, self._timeout, wait_for_workers=False)
        return Channel(store, self.rank, self.num_ranks)

    def close(self) -> None:
        """Stop serving. Rank 0 calls it after everyone's last exchange."""
        self._server = None

    def _rendezvous(self) -> tuple[str, int]:
        bootstrap = dist.PrefixStore("elastates/checkpoints", dist.distributed_c10d._get_default_store())
        key = f"address/{next(_constructions)}"
        if self.rank == 0:
            host = os.environ.get("MASTER_ADDR") or socket.gethostname()
            server = dist.TCPStore(host, 0, None, True, self._timeout, wait_for_workers=False)
            self._server = server
            bootstrap.set(key, f"{host}:{server.port}")
        host, _, port = bootstrap.get(key).decode().rpartition(":")
        return host, int(port)


def prove_one_directory(directory: Path, channel: Channel, timeout_s: float) -> None:
    """Make sure that all ranks see the same directory: rank 0 puts a nonce there and everyone reads it. Collective.

    Rank 0 makes the directory, if it is missing.

    Raises:
        NotOneDirectoryError: names the ranks that do not see it, and the path; on other ranks than 0 also if rank 0
            cannot write there.
        OSError: rank 0 cannot write there.
    """
    nonce, failure = secrets.token_hex(16).encode(), None
    if channel.rank == 0:
        try:
            _put_nonce(directory, nonce)
        except OSError as error:
            nonce, failure = b"", error
    nonce = channel.from_leader("nonce", nonce if channel.rank == 0 else None, timeout_s)
    if not nonce:
        channel.leave(timeout_s)
        raise failure or NotOneDirectoryError(f"rank 0 cannot write to {directory}; its own error says why")
    path = directory / f".nonce-{nonce.decode()}"
    try:
        directory.stat() and list(directory.iterdir())  # network file systems look again after a listing
        seen = path.read_bytes() == nonce
    except OSError:
        seen = False
    answers = channel.gather("nonce-seen", f"{int(seen)}{socket.gethostname()}".encode(), timeout_s)
    if channel.rank == 0:
        storage_ops.unlink(path)
        channel.forget("nonce")
    blind = [f"{rank} ({answer[1:].decode()})" for rank, answer in enumerate(answers) if answer[:1] != b"1"]
    if blind:
        channel.leave(timeout_s)  # rank 0's store goes with what it raises: first everybody reads the answers
        raise NotOneDirectoryError(
            f"ranks {', '.join(blind)} do not see the {directory} that rank 0 sees; give all ranks one shared directory"
        )


def _put_nonce(directory: Path, nonce: bytes) -> None:
    storage_ops.make_directories(directory)
    path = directory / f".nonce-{nonce.decode()}"
    fd = storage_ops.open_or_create(path)
    try:
        storage_ops.overwrite(fd, path, nonce)  # for now only: nothing to sync
    finally:
        os.close(fd)
