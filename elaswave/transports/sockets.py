"""The connections of a library that offers no way to end them: found as those that appeared while it made them.

Source: gloo has no abort (a blocked rank stays blocked); ending its connections frees it within milliseconds. Its
listening sockets are left alone: the next group comes through them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterable

Connection = tuple[int, int]
"""descriptor and inode: the number alone may be another file's by the time it is used"""


def connections() -> frozenset[Connection]:
    """All connected TCP sockets of this process."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile, or no socket
            if _is_connected_tcp(int(name)):
                found.add((int(name), os.fstat(int(name)).st_ino))
    return frozenset(found)


def shut_down(found: Iterable[Connection]) -> None:
    """End those that are still there; whoever is blocked on them gets an error."""
    for descriptor, inode in found:
        # Closed meanwhile, or its peer has gone: nothing left to end.
        with contextlib.suppress(OSError), _same(descriptor) as same:
            if os.fstat(same.fileno()).st_ino == inode:
                same.shutdown(socket.SHUT_RDWR)


def _is_connected_tcp(descriptor: int) -> bool:
    with _same(descriptor) as same:
        is_tcp = same.family in (socket.AF_INET, socket.AF_INET6) and same.type == socket.SOCK_STREAM
        return is_tcp and not same.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


def _same(descriptor: int) -> socket.socket:
    """A second descriptor of a socket, for this module to close."""
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        raise OSError(f"descriptor {descriptor} is no socket")
    return socket.socket(fileno=os.dup(descriptor))
