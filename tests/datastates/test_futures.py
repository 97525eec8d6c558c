"""Futures: a timeout, callbacks and await, with the result or with the error that stood in the way."""

import asyncio
import threading

import pytest

from datastates import CheckpointError, CheckpointFuture


def test_the_result_comes_back_from_another_thread() -> None:
    future: CheckpointFuture[int] = CheckpointFuture()
    assert not future.done()
    thread = threading.Thread(target=future._resolve, args=(7,))
    thread.start()
    assert future.result(timeout_s=60) == 7
    assert future.exception() is None
    assert future.done()
    thread.join()


@pytest.mark.parametrize("ask", ["result", "exception"])
def test_a_timeout_says_how_long_it_waited(ask: str) -> None:
    future: CheckpointFuture[int] = CheckpointFuture()
    with pytest.raises(TimeoutError, match=r"did not reach this point within 0\.01 s"):
        getattr(future, ask)(timeout_s=0.01)
    future._resolve(1)
    assert future.result(0) == 1


def test_a_failure_is_raised_and_returned() -> None:
    future: CheckpointFuture[None] = CheckpointFuture()
    error = CheckpointError("rank 3 is dead")
    future._fail(error)
    assert future.exception() is error
    with pytest.raises(CheckpointError, match="rank 3 is dead"):
        future.result()


def test_a_failure_that_is_itself_a_timeout_is_not_taken_for_ours() -> None:
    future: CheckpointFuture[None] = CheckpointFuture()
    future._fail(TimeoutError("the store"))
    with pytest.raises(TimeoutError, match="the store"):
        future.result(timeout_s=1)


def test_the_first_resolution_stands() -> None:
    future: CheckpointFuture[int] = CheckpointFuture()
    future._resolve(1)
    future._resolve(2)
    future._fail(CheckpointError("late"))
    assert future.result() == 1


def test_callbacks_get_the_future_before_and_after() -> None:
    future: CheckpointFuture[int] = CheckpointFuture()
    seen: list[CheckpointFuture[int]] = []
    future.add_done_callback(seen.append)
    assert seen == []
    future._resolve(1)
    future.add_done_callback(seen.append)
    assert [f.result() for f in seen] == [1, 1]
    assert seen == [future, future]


def test_awaiting_gives_the_result_and_raises_the_failure() -> None:
    good: CheckpointFuture[int] = CheckpointFuture()
    bad: CheckpointFuture[int] = CheckpointFuture()

    async def wait() -> int:
        value = await good
        with pytest.raises(CheckpointError, match="gone"):
            await bad
        return value

    threads = [
        threading.Thread(target=good._resolve, args=(5,)),
        threading.Thread(target=bad._fail, args=(CheckpointError("gone"),)),
    ]
    for thread in threads:
        thread.start()
    assert asyncio.run(asyncio.wait_for(wait(), 60)) == 5
    for thread in threads:
        thread.join()


def test_giving_up_an_await_does_not_cancel_the_checkpoint() -> None:
    future: CheckpointFuture[int] = CheckpointFuture()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.ensure_future(_await(future)), 0.01)

    asyncio.run(give_up())
    future._resolve(3)
    assert future.result() == 3


async def _await(future: CheckpointFuture[int]) -> int:
    return await future
