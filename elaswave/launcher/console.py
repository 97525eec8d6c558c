"""What the agent prints, and the output of ranks that goes to files and to the terminal.

A thread of its own does both: a terminal or pipe that nobody reads blocks it, and must not block the agent. Workers
write straight into their files, so they neither wait for the terminal nor need the agent to live.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import TextIO

LOOK_EVERY_S = 0.05  # how late a line of a rank's file may appear here
READ_BYTES = 1 << 16


class _Followed:
    """A file that grows: whole new lines come out, each with a prefix."""

    def __init__(self, path: Path, prefix: str, to: TextIO) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._prefix = prefix.encode()
        self._rest = b""
        self.to = to

    def read(self) -> str:
        lines = []
        while piece := os.read(self._fd, READ_BYTES):
            *whole, self._rest = (self._rest + piece).split(b"\n")
            lines += whole
        return self._text(lines)

    def close(self) -> str:
        """The end of the file, even without a newline."""
        text = self.read()
        os.close(self._fd)
        return text + (self._text([self._rest]) if self._rest else "")

    def _text(self, lines: list[bytes]) -> str:
        return b"".join(self._prefix + line + b"\n" for line in lines).decode(errors="replace")


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
        self._orders.put(("say", None, "".join(f"{self._prefix}{line}\n" for line in text.splitlines())))

    def follow(self, path: Path, prefix: str, *, is_error: bool) -> None:
        """Print what is written to a file from now on."""
        self._orders.put(("follow error" if is_error else "follow", path, prefix))

    def unfollow(self, path: Path) -> None:
        """Print the rest of a file that nobody writes to any more."""
        self._orders.put(("unfollow", path, ""))

    def _run(self) -> None:
        while True:
            try:
                order = self._orders.get(timeout=LOOK_EVERY_S if self._followed else None)
            except queue.Empty:
                self._look()
                continue
            if order is None:
                break
            self._obey(*order)
        for path in list(self._followed):
            self._obey("unfollow", path, "")

    def _obey(self, what: str, subject: object, text: str) -> None:
        if what == "say":
            _write(sys.stderr, text)
            return
        assert isinstance(subject, Path)
        if what == "unfollow":
            if followed := self._followed.pop(subject, None):
                _write(followed.to, followed.close())
        else:
            self._followed[subject] = _Followed(subject, text, sys.stderr if what == "follow error" else sys.stdout)

    def _look(self) -> None:
        for followed in self._followed.values():
            _write(followed.to, followed.read())


def _write(to: TextIO, text: str) -> None:
    """Print; a terminal that has gone away is no reason to end a job, whose output is in its files."""
    try:
        to.write(text)
        to.flush()
    except (BrokenPipeError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), to.fileno())
