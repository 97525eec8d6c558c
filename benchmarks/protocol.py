"""How one contender is measured once. Clocks start at the call.

1. It is opened and saves once, unmeasured: processes are spawned, buffers and files of this size allocated before.
2. Alone: a save with nothing beside it gives the clocks *safe* and *durable*. Peak memory is taken from before 1 on.
3. Overlapped: plain training steps, the call, the same step while the checkpoint is under way, the wait for *safe*;
   then every tensor is mutated in place, steps go on until the checkpoint is durable, and plain steps follow.
   Stall = time in the call + time blocked before the mutation + (overlapped step - a step without a checkpoint).
4. The overlapped checkpoint is loaded from a cold page cache, in place, and compared bit for bit with a private copy of
   the values at the call.
"""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.contenders.base import Contender, Pending
from benchmarks.files import evict_tree, remove_tree, tree_size_bytes
from benchmarks.memory import PeakMemory
from benchmarks.workload import Workload

WARM_UP_STEP, ALONE_STEP, OVERLAPPED_STEP = 0, 1, 2
PLAIN_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One repeat of one contender; times in seconds."""

    call_s: float
    gate_s: float
    """Blocked between the end of the overlapped step and the mutation."""
    overlapped_step_s: float
    plain_step_s: float
    """Median of PLAIN_STEPS just before the call and as many after the checkpoint was durable."""
    stall_until_durable_s: float
    """Call + gate + what every step until durable took beyond a plain one: it also sees late interference."""
    safe_s: float
    durable_s: float
    safe_overlapped_s: float
    durable_overlapped_s: float
    restore_s: float
    peak_extra_mb: float
    stored_bytes: int
    num_bytes: int
    """Bytes of the tensors."""
    differences: tuple[str, ...]
    """Names of tensors whose loaded bits differ from those at the call."""

    @property
    def stall_s(self) -> float:
        """What the training loop lost, by the definition above. Not clamped: noise may make it negative."""
        return self.call_s + self.gate_s + self.overlapped_step_s - self.plain_step_s

    @property
    def correct(self) -> bool:
        """Whether the checkpoint is the state at the call."""
        return not self.differences


@dataclass(frozen=True, kw_only=True)
class _Overlap:
    call_s: float
    gate_s: float
    overlapped_step_s: float
    plain_step_s: float
    stall_until_durable_s: float
    safe_overlapped_s: float
    durable_overlapped_s: float


def measure(contender: Contender, workload: Workload) -> Sample:
    """One repeat, from open to close; leaves no file behind."""
    try:
        with PeakMemory() as memory, _closed_on_error(contender):
            contender.open()
            _save_alone(contender, WARM_UP_STEP)
            safe_s, durable_s = _save_alone(contender, ALONE_STEP)
        with contextlib.closing(contender):
            overlap = _overlapped_save(contender, workload)
            path = contender.path_of(OVERLAPPED_STEP)
            stored_bytes = tree_size_bytes(path)
            restore_s, differences = cold_restore(contender, OVERLAPPED_STEP)
    finally:
        remove_tree(contender.root)
    return Sample(
        **vars(overlap),
        safe_s=safe_s,
        durable_s=durable_s,
        restore_s=restore_s,
        peak_extra_mb=memory.peak_extra_mb,
        stored_bytes=stored_bytes,
        num_bytes=workload.num_bytes,
        differences=tuple(differences),
    )


def _save_alone(contender: Contender, step: int) -> tuple[float, float]:
    contender.root.mkdir(parents=True, exist_ok=True)
    quiesce()
    start_s = time.perf_counter()
    pending = contender.save(step)
    pending.wait_safe()
    safe_s = time.perf_counter() - start_s
    pending.wait_durable()
    durable_s = time.perf_counter() - start_s
    remove_tree(contender.path_of(step))
    return safe_s, durable_s


def _overlapped_save(contender: Contender, workload: Workload) -> _Overlap:
    workload.remember()
    quiesce()
    plain_steps_s = [workload.forward_backward() for _ in range(PLAIN_STEPS)]

    with ThreadPoolExecutor(1, thread_name_prefix="bench-clocks") as watcher:
        start_s = time.perf_counter()
        pending = contender.save(OVERLAPPED_STEP)
        call_s = time.perf_counter() - start_s
        clocks = watcher.submit(_watch, pending, start_s)
        overlapped_step_s = workload.forward_backward()
        gate_start_s = time.perf_counter()
        pending.wait_safe()
        gate_s = time.perf_counter() - gate_start_s
        workload.mutate()

        later_steps_s = []
        while not clocks.done():
            later_steps_s.append(workload.forward_backward())
    safe_overlapped_s, durable_overlapped_s = clocks.result()
    plain_steps_s += [workload.forward_backward() for _ in range(PLAIN_STEPS)]
    plain_step_s = statistics.median(plain_steps_s)
    excess_s = sum(taken_s - plain_step_s for taken_s in (overlapped_step_s, *later_steps_s))
    return _Overlap(
        call_s=call_s,
        gate_s=gate_s,
        overlapped_step_s=overlapped_step_s,
        plain_step_s=plain_step_s,
        stall_until_durable_s=call_s + gate_s + excess_s,
        safe_overlapped_s=safe_overlapped_s,
        durable_overlapped_s=durable_overlapped_s,
    )


def cold_restore(contender: Contender, step: int) -> tuple[float, list[str]]:
    """Seconds to load ``step`` from storage, and what came back wrong. The live state must have been mutated."""
    quiesce()
    evict_tree(contender.path_of(step))
    start_s = time.perf_counter()
    progress = contender.restore(step)
    restore_s = time.perf_counter() - start_s
    return restore_s, contender.state.differences(progress)


def quiesce() -> None:
    """Let the disk and the garbage collector finish with what came before."""
    gc.collect()
    os.sync()


@contextlib.contextmanager
def _closed_on_error(contender: Contender) -> Iterator[None]:
    try:
        yield
    except BaseException:
        contender.close()
        raise


def _watch(pending: Pending, start_s: float) -> tuple[float, float]:
    # Runs in a thread of its own: notes when the save became safe and durable while the main thread trains.
    pending.wait_safe()
    safe_s = time.perf_counter() - start_s
    pending.wait_durable()
    return safe_s, time.perf_counter() - start_s
