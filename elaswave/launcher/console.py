"""What the agent prints, and the output of ranks that goes to files and to the terminal.

A thread of its own does both: a terminal or pipe that nobody reads blocks it, and must not block the agent. Workers
write straight into their files, so they neither wait for the terminal nor need the agent to live. Bytes are passed on
as they are: what ranks print need not be text.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import threading
from pathlib import Path
from types import TracebackType

LOOK_EVERY_S = 0.05  # how late a line of a rank's file may appear here
READ_BYTES = 1 << 16  # of one file before the next has its turn; a line that is longer is broken here
STDOUT, STDERR = 1, 2


class _Followed:
    """A file that grows: whole new lines come out, each with a prefix."""

    def __init__(self, path: Path, prefix: str, to: int) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._prefix = prefix.encode()
        self._rest = b""
        self.to = to

    def read(self) -> bytes | None:
        """The next lines; ``None`` when all was read that is there."""
        piece = os.read(self._fd, READ_BYTES)
        if not piece:
            return None
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) >= READ_BYTES:
            lines, self._rest = [*lines, self._rest], b""
        return self._prefixed(lines)

    def close(self) -> bytes:
        """The end of the file, even without a newline."""
        os.close(self._fd)
        return self._prefixed([self._rest] if self._rest else [])

    def _prefixed(self, lines: list[bytes]) -> bytes:
        return b"".join(self._prefix + line + b"\n" for line in lines)


class Console:
    """Context manager; ``say``, ``follow`` and ``unfollow`` may be called from any thread and return at once."""

    def __init__(self, name: str) -> None:
        """``name`` stands in front of what the agent says."""
        self._prefix = f"[{name}] "
        self._orders: queue.SimpleQueue[tuple[str, object, str] | None] = queue.SimpleQueue()
        self._followed: dict[Path, _Followed] = {}
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)

    def __enter__(self) -> Console:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._orders.put(None)
        self._thread.join()

    def say(self, text: str) -> None:
        """Print lines of the agent's own on standard error."""
        self._orders.put(("say", None, text))

    def follow(self, path: Path, prefix: str, *, is_error: bool) -> None:
        """Print what is written to a file from now on."""
        self._orders.put(("follow error" if is_error else "follow", path, prefix))

    def unfollow(self, path: Path) -> None:
        """Print the rest of a file that nobody writes to any more."""
        self._orders.put(("unfollow", path, ""))

    def _run(self) -> None:
        is_behind = False
        while True:
            try:
                order = self._orders.get(timeout=(0 if is_behind else LOOK_EVERY_S) if self._followed else None)
            except queue.Empty:
                is_behind = self._look()
                continue
            if order is None:
                break
            self._obey(*order)
        for path in list(self._followed):
            self._unfollow(path)

    def _obey(self, what: str, subject: object, text: str) -> None:
        if what == "say":
            self._print(text)
            return
        assert isinstance(subject, Path)
        if what == "unfollow":
            self._unfollow(subject)
            return
        try:
            self._followed[subject] = _Followed(subject, text, STDERR if what == "follow error" else STDOUT)
        except OSError as error:
            self._print(f"the output in {subject} is not shown here: {error}")

    def _unfollow(self, path: Path) -> None:
        if followed := self._followed.pop(path, None):
            while (lines := followed.read()) is not None:
                _write(followed.to, lines)
            _write(followed.to, followed.close())

    def _look(self) -> bool:
        """A piece of each file; whether there may be more."""
        pieces = [(followed.to, followed.read()) for followed in self._followed.values()]
        for to, lines in pieces:
            _write(to, lines or b"")
        return any(lines is not None for _, lines in pieces)

    def _print(self, text: str) -> None:
        _write(STDERR, "".join(f"{self._prefix}{line}\n" for line in text.splitlines()).encode(errors="replace"))


def _write(fd: int, data: bytes) -> None:
    """Print; a terminal that has gone away or a full disk is no reason to end a job, whose output is in its files."""
    with contextlib.suppress(OSError):
        while data:
            try:
                data = data[os.write(fd, data) :]
            except BlockingIOError:  # a terminal that somebody else has made so
                select.select([], [fd], [])
