"""Witnesses: what breaks the tie when a cut cable leaves exactly half of the members on either side."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import torch.distributed as dist

from elaswave.errors import LaunchError
from elaswave.timeouts import Timeouts

STORE = "store://"


class Witness(Protocol):
    """A place that both sides may reach, and that keeps what one of them has written."""

    def compare_and_set(self, key: str, expected: bytes, desired: bytes) -> tuple[bool, bytes]:
        """Write ``desired`` where ``expected`` stands (empty: nothing), atomically.

        Returns:
            Whether it was written, and what stands there now.

        Raises:
            OSError: the witness cannot be reached; this side then stops, unless it is asked again and answers.
        """


class FileWitness:
    """A file that all nodes see, locked for every look at it, with a line for all that was ever written.

    The file system must honour POSIX locks: NFSv4, Lustre and the like.
    """

    def __init__(self, path: Path) -> None:
        """Use this file, which need not exist; one for each job."""
        self._path = path

    def compare_and_set(self, key: str, expected: bytes, desired: bytes) -> tuple[bool, bytes]:
        """See ``Witness``."""
        with os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            actual = self._last(file.read(), key)
            if actual != expected:
                return False, actual
            # The line break first ends what a writer that died has left.
            file.write(b"\n" + json.dumps({key: desired.hex()}).encode() + b"\n")
            os.fsync(file.fileno())
            return True, desired

    @staticmethod
    def _last(content: bytes, key: str) -> bytes:
        """What was written last under a key. What is no JSON was being written when its writer died."""
        found = b""
        for line in content.splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                found = bytes.fromhex(entry[key]) if entry.keys() == {key} else found
        return found


class StoreWitness:
    """A c10d TCPStore, as every agent hosts one: the side that reaches it goes on, while its agent lives.

    Connects when it is first asked, which is when a tie has to be broken.
    """

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        """``timeout_s``: for connecting."""
        self._host, self._port, self._timeout = host, port, timedelta(seconds=timeout_s)
        self._store: dist.TCPStore | None = None

    def compare_and_set(self, key: str, expected: bytes, desired: bytes) -> tuple[bool, bytes]:
        """See ``Witness``."""
        try:
            if self._store is None:
                self._store = dist.TCPStore(
                    self._host, self._port, is_master=False, wait_for_workers=False, timeout=self._timeout
                )
            # In hex: torch takes text, and what is empty for what is not there.
            actual = self._store.compare_set(f"witness/{key}", expected.hex(), desired.hex())
        except dist.DistError as error:
            self._store = None
            raise OSError(f"the witness, a store at {self._host}:{self._port}, cannot be reached: {error}") from error
        found = bytes.fromhex(actual.decode())
        return found == desired, found


def from_environment(environment: Mapping[str, str] = os.environ) -> Witness | None:
    """The witness that ``ELASWAVE_WITNESS`` names: a path, or store://HOST:PORT; None if it names none.

    Raises:
        LaunchError: it cannot be written to; better said now than when a tie has to be broken.
    """
    path = environment.get("ELASWAVE_WITNESS")
    if not path:
        return None
    if path.startswith(STORE):
        host, _, port = path.removeprefix(STORE).rpartition(":")
        if not host or not port.isdigit():
            raise LaunchError(f"expected ELASWAVE_WITNESS={STORE}HOST:PORT, got {path!r}")
        return StoreWitness(host, int(port), Timeouts.from_environment(environment).failure_timeout_s)
    try:
        with open(path, "ab"):
            return FileWitness(Path(path))
    except OSError as error:
        raise LaunchError(
            f"the witness (--witness, ELASWAVE_WITNESS) must be a file that can be written to, got {path!r}: {error}"
        ) from error
