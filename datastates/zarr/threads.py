"""Jobs in threads, as many in memory as there are threads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")


def run_in_threads(jobs: Iterable[Callable[[], T]], threads: int) -> Iterator[T]:
    """Results of jobs as they end, ``threads`` at a time; a job is asked for only when a thread is free for it.

    The first failure is raised when those that run have ended; no further one begins.
    """
    todo = iter(jobs)
    with ThreadPoolExecutor(threads, thread_name_prefix="ds-zarr") as pool:
        running: set[Future[T]] = {pool.submit(job) for job in itertools.islice(todo, threads)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
            running |= {pool.submit(job) for job in itertools.islice(todo, threads - len(running))}
