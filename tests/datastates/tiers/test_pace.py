"""The bandwidth cap over time, retries, and the end of waiting."""

import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datastates.tiers import pace as pacing
from datastates.tiers.pace import Pace, Stopped, TokenBucket, may_pass


class Clock:
    """Time passes only when somebody waits."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def wait(self, wait_s: float) -> None:
        self.now_s += wait_s


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 20)), min_size=2, max_size=30),
    st.floats(1, 500),
)
def test_no_stretch_of_time_carries_more_than_the_cap(takes: list[tuple[int, float]], bytes_s: float) -> None:
    clock = Clock()
    bucket = TokenBucket(bytes_s, lambda: clock.now_s, clock.wait)
    sent = []
    for size, idle_s in takes:
        clock.now_s += idle_s
        bucket.take(size)
        sent.append((clock.now_s, size))
    for i in range(len(sent)):
        for j in range(i + 1, len(sent) + 1):
            span_s = sent[j - 1][0] - sent[i][0]
            largest = max(size for _, size in sent[i:j])
            assert sum(size for _, size in sent[i:j]) <= bytes_s * span_s + largest + 1e-6 * bytes_s * (1 + span_s)


def test_the_cap_is_used_fully_when_there_is_enough_to_send() -> None:
    clock = Clock()
    bucket = TokenBucket(1000, lambda: clock.now_s, clock.wait)
    for _ in range(101):
        bucket.take(50)
    assert clock.now_s == pytest.approx(5.0)  # the first goes at once, each of the others waits for the one before it


def test_without_a_cap_nobody_waits() -> None:
    clock = Clock()
    TokenBucket(None, lambda: clock.now_s, clock.wait).take(10**15)
    assert clock.now_s == 0


def test_what_may_pass_is_tried_again_with_growing_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    pace = Pace(None, 1000)
    monkeypatch.setattr(pace, "_sleep", pauses.append)
    failures = iter([ConnectionError("reset"), TimeoutError("late"), OSError(5, "EIO"), None])

    def act() -> str:
        if error := next(failures):
            raise error
        return "done"

    assert pace.retried(act, "an act") == "done"
    assert pace.num_retries == len(pauses) == 3
    assert all(2 * late > early for early, late in pairwise(pauses))
    assert max(pauses) <= pacing.LONGEST_PAUSE_S


@pytest.mark.parametrize("error", [PermissionError("no"), FileNotFoundError("no bucket"), ValueError("bad")])
def test_what_cannot_pass_is_not_tried_again(error: Exception) -> None:
    pace = Pace(None, 1000)
    tried = []

    def act() -> None:
        tried.append(1)
        raise error

    with pytest.raises(type(error)):
        pace.retried(act, "an act")
    assert len(tried) == 1
    assert not may_pass(error)


def test_patience_ends() -> None:
    pace = Pace(None, 0)
    with pytest.raises(ConnectionError, match="refused"):
        pace.retried(lambda: (_ for _ in ()).throw(ConnectionError("refused")), "an act")


def test_stop_ends_every_wait() -> None:
    pace = Pace(0.000001, 1000)  # one byte a second
    pace.take(10**9)
    waiting, ended = threading.Event(), []

    def wait() -> None:
        waiting.set()
        with pytest.raises(Stopped):
            pace.take(1)
        ended.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    pace.stop()
    thread.join(10)
    assert ended == [True]
    with pytest.raises(Stopped):
        pace.retried(lambda: None, "an act")
