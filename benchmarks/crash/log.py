"""What processes did to the file system: the native record as dataclasses, with the call site of every fsync."""

from __future__ import annotations

import contextlib
import json
import linecache
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from datastates import storage_ops

import _elastates

NATIVE_SITE = "FileSink::Finish"
"""Where the native core syncs data files."""
_SITE = "site "


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation, or a mark of the job's (``op == "mark"``: its text is ``path``)."""

    op: str
    path: str
    destination: str = ""
    offset: int = 0
    size_bytes: int = 0
    data: bytes = b""
    result: int = 0
    began_ns: int
    ended_ns: int
    """0: still under way when the log was taken."""
    client: int = 0
    """The machine that did it: what one machine syncs says nothing about what another one has done."""
    site: str = ""
    """Of an fsync: the line of the product that asked for it."""

    @property
    def failed(self) -> bool:
        return self.result < 0


@contextlib.contextmanager
def recording() -> Iterator[Callable[[], list[Operation]]]:
    """Record this process; yields what returns the log so far."""
    names = ("sync_directory", "write_synced", "sync_file")
    plain = {name: getattr(storage_ops, name) for name in names}
    for name in names:
        setattr(storage_ops, name, _naming_its_caller(plain[name]))
    _elastates.start_recording()
    try:
        yield lambda: _with_sites([Operation(**fields) for fields in _elastates.take_recording()])
    finally:
        _elastates.stop_recording()
        for name in names:
            setattr(storage_ops, name, plain[name])


def merged(logs: list[list[Operation]], clients: list[int] | None = None) -> list[Operation]:
    """One log of several processes, in the order of the clock they share."""
    clients = clients or [0] * len(logs)
    owned = (replace(done, client=client) for log, client in zip(logs, clients, strict=True) for done in log)
    return sorted(owned, key=lambda done: done.began_ns)


def dump(log: list[Operation], path: Path) -> None:
    """Write a log to a file, for another process to :func:`load`."""
    path.write_text(json.dumps([{**asdict(done), "data": done.data.hex()} for done in log]))


def load(path: Path) -> list[Operation]:
    """The log that :func:`dump` wrote."""
    return [Operation(**{**fields, "data": bytes.fromhex(fields["data"])}) for fields in json.loads(path.read_text())]


def _naming_its_caller(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, leaving a mark with the line that called it in front of what it does."""

    def named(path: os.PathLike[str], *args: Any) -> Any:
        frame = sys._getframe(1)
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip().partition("  #")[0]
        _elastates.record_mark(f"{_SITE}{os.fspath(path)}\n{frame.f_code.co_qualname}: {line}")
        return function(path, *args)

    return named


def _with_sites(log: list[Operation]) -> list[Operation]:
    """Move the notes of call sites to the fsyncs they announce."""
    announced: dict[str, str] = {}
    told = []
    for done in log:
        if done.op == "mark" and done.path.startswith(_SITE):
            path, _, site = done.path.removeprefix(_SITE).partition("\n")
            announced[path] = site
        elif done.op in ("fsync", "fsync_directory"):
            told.append(replace(done, site=announced.pop(done.path, NATIVE_SITE)))
        else:
            told.append(done)
    return told
