"""What a directory must still give after a crash, and whether it does.

The newest checkpoint that was reported durable, or a newer one, comes back bit for bit; so does every older one that
nobody had begun to remove; and whatever shows itself as a published step is whole.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

import datastates
from benchmarks.crash.job import empty_state, found_steps, state_of, values
from benchmarks.crash.runs import Run
from datastates.providers.per_rank import PerRank

_LEAVES = re.compile(r"\.old-step-(\d+)-[0-9a-f]+")


@dataclass
class Promise:
    """What may be asked of a directory at a moment."""

    durable: dict[int, int] = field(default_factory=dict)
    """Reported durable and not on its way out: step -> generation."""
    newest: int = -1
    """The highest step ever reported durable."""
    possible: dict[int, set[int]] = field(default_factory=dict)
    """Begun: step -> generations."""
    damaged: set[int] = field(default_factory=set)
    """Steps that may be found damaged: they were before the run."""
    num_ranks: int = 1


@dataclass(frozen=True)
class Problem:
    """Something that must not be."""

    kind: str
    """``lost``, ``wrong_bytes`` or ``ruins`` (a published step that is not whole)."""
    what: str


def promise_at(run: Run, moment_ns: int | None) -> Promise:
    """What a run had been told when the power went."""
    promise = Promise(durable=dict(run.promised), damaged=set(run.damaged), num_ranks=run.num_ranks)
    promise.possible = {step: {generation} for step, generation in {**run.elsewhere, **run.promised}.items()}
    for done in run.log:
        if moment_ns is not None and done.began_ns >= moment_ns:
            break
        if done.op == "rename" and (leaving := _leaves(done.destination, run)) is not None:
            promise.durable.pop(leaving, None)
        elif done.op == "mark":
            what, step, generation = done.path.split()
            if what == "begun":
                promise.possible.setdefault(int(step), set()).add(int(generation))
            elif what == run.told:
                promise.durable[int(step)] = int(generation)
                promise.damaged.discard(int(step))
    promise.newest = max([*promise.durable, -1])
    return promise


def _leaves(destination: str, run: Run) -> int | None:
    """The step that retention takes out of the directory that is judged, if that is what a rename does."""
    directory, _, name = destination.rpartition("/")
    found = _LEAVES.fullmatch(name) if directory == str(run.root.resolve() / run.judged) else None
    return None if found is None else int(found[1])


def judge(directory: Path, promise: Promise) -> list[Problem]:
    """Restore as a user would, then read everything that is there; what is wrong, if anything."""
    with quiet():
        return [*_restore(directory, promise), *_read_all(directory, promise)]


def _restore(directory: Path, promise: Promise) -> Iterator[Problem]:
    live = empty_state()
    try:
        with datastates.Checkpointer(directory, read_threads=1) as checkpoints:
            step = checkpoints.restore(live) - 1
    except datastates.DataStatesError as error:
        yield Problem("lost", f"restore: {error}")
        return
    if step < promise.newest:
        yield Problem("lost", f"restored step {step}, but {promise.newest} had been reported durable")
    if step >= 0 and (why := differs(live, step, promise)):
        yield Problem("wrong_bytes", f"restored step {step}: {why}")


def differs(live: dict[str, object], step: int, promise: Promise) -> str:
    """How a restored state differs from all that may have been saved; empty if it does not."""
    progress = live["progress"]
    assert isinstance(progress, dict)
    generation = progress["generation"]
    if generation not in _allowed(step, promise) or progress["step"] != step:
        return f"its Python values are {progress}"
    expected = state_of(step, generation, 0, promise.num_ranks)
    return _first_difference(_tensors(live), _tensors(expected))


def _allowed(step: int, promise: Promise) -> set[int]:
    known = promise.durable.get(step)
    return promise.possible.get(step, set()) if known is None else {known}


def _read_all(directory: Path, promise: Promise) -> Iterator[Problem]:
    shown = found_steps(directory)
    for step in sorted(promise.durable.keys() - set(shown)):
        yield Problem("lost", f"step {step} had been reported durable, and nobody removed it")
    for step in shown:
        try:
            reader = datastates.open_checkpoint(directory / f"step-{step:08d}", threads=1)
            tensors = reader.read_many(dict.fromkeys(reader.names()))
            ranks = [reader.python(rank)["progress"] for rank in range(promise.num_ranks)]
        except datastates.DamagedCheckpointError as error:
            if step not in promise.damaged:
                yield Problem("ruins", f"step {step} is there by name: {error}")
            continue
        found = {progress["generation"] for progress in ranks}
        if len(found) != 1 or not found <= _allowed(step, promise):
            yield Problem("wrong_bytes", f"step {step}: its Python values are {ranks}")
        elif why := _first_difference(tensors, values(step, found.pop(), promise.num_ranks)):
            yield Problem("wrong_bytes", f"step {step}: {why}")


def _tensors(state: dict[str, object]) -> dict[str, torch.Tensor]:
    model, own, steps = state["model"], state["own"], state["steps"]
    assert isinstance(model, dict)
    assert isinstance(own, PerRank)
    assert isinstance(steps, torch.Tensor)
    return {**model, "own": own.value, "steps": steps}


def _first_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> str:
    if found.keys() != expected.keys():
        return f"holds {sorted(found)}, expected {sorted(expected)}"
    for name, tensor in expected.items():
        same = found[name].flatten().view(torch.uint8).equal(tensor.flatten().view(torch.uint8))
        if found[name].dtype != tensor.dtype or not same:
            return f"{name} differs"
    return ""


@contextmanager
def quiet() -> Iterator[None]:
    """Damage that is passed over is a warning each time: here it is expected."""
    logger = logging.getLogger("datastates")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def describe(problems: Sequence[Problem]) -> str:
    """One line for a report."""
    return "; ".join(f"{problem.kind}: {problem.what}" for problem in problems)
