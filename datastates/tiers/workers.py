"""Workers: a few threads for the length of a ``with`` block.

Not ``concurrent.futures``: the interpreter waits for the threads of those before it calls what is registered for its
exit, so a script that forgot ``close()`` could not end while a server stands still.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

LOOK_S = 0.5
"""A Ctrl-C that comes just before a thread begins to wait does not wake it."""


class Workers:
    """Daemon threads; several threads may call :meth:`map` at once, and share them."""

    def __init__(self, num_threads: int, name: str) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._run, name=name, daemon=True) for _ in range(num_threads)]

    def __enter__(self) -> Workers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for _thread in self._threads:
            self._tasks.put(None)

    def map(self, act: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
        """``act`` for every set of arguments, side by side; the results in their order.

        After an error none begins any more; those that have begun end first. Ctrl-C does not wait for them.

        Raises:
            Exception: the first error.
        """
        batch = _Batch(act, list(zip(*arguments, strict=True)))
        try:
            for number in range(len(batch.arguments)):
                self._tasks.put(lambda number=number: batch.run(number))  # type: ignore[misc]
            return batch.wait()
        except BaseException as error:  # Ctrl-C: nobody wants what has not begun
            batch.give_up(error)
            raise

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
            del task  # or what it holds would live until the next one


class _Batch(Generic[T]):
    """One call of :meth:`Workers.map`."""

    def __init__(self, act: Callable[..., T], arguments: list[tuple[Any, ...]]) -> None:
        self.arguments = arguments
        self._act = act
        self._results: dict[int, T] = {}
        self._error: BaseException | None = None
        self._num_left = len(arguments)
        self._changed = threading.Condition()

    def run(self, number: int) -> None:
        result, failure = None, self._error
        if failure is None:
            try:
                result = self._act(*self.arguments[number])
            except BaseException as error:  # noqa: BLE001  (raised where the results are asked for)
                failure = error
        with self._changed:
            self._error = self._error or failure
            self._results[number] = result  # type: ignore[assignment]
            self._num_left -= 1
            self._changed.notify_all()

    def give_up(self, error: BaseException) -> None:
        self._error = self._error or error

    def wait(self) -> list[T]:
        with self._changed:
            while not self._changed.wait_for(lambda: not self._num_left, LOOK_S):
                continue
        if self._error is not None:
            raise self._error
        return [self._results[number] for number in range(len(self.arguments))]
