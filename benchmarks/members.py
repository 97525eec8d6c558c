"""Members of a group, forked, each with a pipe by which it tells what it measured. Needs nothing but torch."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

WAIT_S = 120.0


@contextmanager
def members(
    size: int, be_member: Callable[[int, int, str, Connection], None]
) -> Iterator[tuple[list[BaseProcess], list[Connection]]]:
    """Processes that run ``be_member(rank, size, store file, pipe)``, and pipes to them; killed at the end."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as directory:
        pairs = [context.Pipe() for _ in range(size)]
        arguments = [(rank, size, f"{directory}/store", pairs[rank][1]) for rank in range(size)]
        processes: list[BaseProcess] = [context.Process(target=be_member, args=these) for these in arguments]
        for process in processes:
            process.start()
        try:
            yield processes, [mine for mine, _ in pairs]
        finally:
            for process in processes:
                process.kill()
                process.join()


def expect(pipe: Connection) -> Any:
    """What a member says next."""
    if not pipe.poll(WAIT_S):
        raise SystemExit(f"a member said nothing within {WAIT_S:g} s")
    return pipe.recv()
