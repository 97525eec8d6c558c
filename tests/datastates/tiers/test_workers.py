"""Threads for a while: order, errors, sharing."""

import signal
import threading

import pytest

from datastates.tiers.workers import Workers


def test_results_are_in_order_and_work_is_side_by_side() -> None:
    meet = threading.Barrier(3, timeout=30)

    def act(number: int, factor: int) -> int:
        meet.wait()
        return number * factor

    with Workers(3, "test") as workers:
        assert workers.map(act, range(6), [10] * 6) == [0, 10, 20, 30, 40, 50]
        assert workers.map(act, [], []) == []


def test_the_first_error_is_raised_and_nothing_begins_after_it() -> None:
    begun = []

    def act(number: int) -> None:
        begun.append(number)
        if number == 2:
            raise KeyError(number)

    with Workers(1, "test") as workers:
        with pytest.raises(KeyError):
            workers.map(act, range(100))
        assert begun == [0, 1, 2]
        assert workers.map(lambda number: number, [7]) == [7]


def test_ctrl_c_waits_for_nobody_and_nothing_begins_after_it() -> None:
    begun, interrupted = [], threading.Event()

    def act(number: int) -> int:
        begun.append(number)
        if number == 0:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # as the kernel does for a terminal
            assert interrupted.wait(60)
            begun.append(-1)  # it was let go on, while the caller had left
        return number

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    try:
        with Workers(1, "test") as workers:
            with pytest.raises(KeyboardInterrupt):
                workers.map(act, range(100))
            interrupted.set()
            assert workers.map(lambda number: number, [7]) == [7]
    finally:
        signal.signal(signal.SIGINT, before)
    assert begun == [0, -1]


def test_several_threads_share_them() -> None:
    with Workers(2, "outer") as outer, Workers(2, "inner") as inner:
        assert outer.map(lambda n: sum(inner.map(lambda k: k * n, range(10))), range(4)) == [0, 45, 90, 135]
