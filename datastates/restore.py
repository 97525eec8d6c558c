"""Restore: bring a live state to the newest checkpoint that all ranks can load, bit for bit.

rank 0:     list the published steps
every rank: for each step, newest first
              read the manifest, check files          -> all ranks agree it is whole, or all go on to the next
              match names, shapes, dtypes             -> a misfit is the caller's error, on all ranks
              read tensors in place, verify           -> all ranks agree, or all go on to the next
              take Python values back
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from datastates.bulk import without_gc
from datastates.capture import leaves, make_context
from datastates.config import CheckpointerConfig
from datastates.coordination import Channel
from datastates.directory import CheckpointDirectory, read_manifest
from datastates.errors import DamagedCheckpointError, RestoreError
from datastates.loading import Target, load, plan_load
from datastates.providers import provider_for
from datastates.saved import SavedCheckpoint, match, selected_section
from datastates.sight.bus import emit, sinks
from datastates.sight.events import DamageFound, Origin, RestoreFellBack
from datastates.sight.spans import span

logger = logging.getLogger("datastates")
T = TypeVar("T")


def restore(
    directory: CheckpointDirectory,
    vote: Vote,
    state: Mapping[str, Any],
    *,
    config: CheckpointerConfig,
    strict: bool,
    only: Sequence[str] | None,
    allow_pickle: bool,
) -> tuple[int, set[int]]:
    """See :meth:`datastates.Checkpointer.restore`; returns the next step and the steps found damaged."""
    steps = json.loads(vote.leader(json.dumps(directory.steps()).encode()))
    damaged: dict[int, str] = {}
    for step in reversed(steps):
        try:
            saved = _load_step(directory, vote, step, state, config, strict, only, allow_pickle)
        except DamagedCheckpointError as error:
            damaged[step] = str(error)
            logger.warning("checkpoint of step %d is damaged, falling back to an older one: %s", step, error)
            if sinks:
                origin = Origin(str(directory.path), vote.rank)
                emit(DamageFound(origin, step=step, what=str(error)))
                emit(RestoreFellBack(origin, step=step, reason=str(error)))
            continue
        with span("take Python values back", step):
            _apply_on_all(vote, saved, state, only)
        return saved.manifest.step + 1, set(damaged)
    if damaged:
        report = "; ".join(f"step {step}: {why}" for step, why in damaged.items())
        raise RestoreError(
            f"no checkpoint of {directory.path} can be restored and the live state may be half overwritten: {report}"
        )
    return 0, set()


def _load_step(
    directory: CheckpointDirectory,
    vote: Vote,
    step: int,
    state: Mapping[str, Any],
    config: CheckpointerConfig,
    strict: bool,
    only: Sequence[str] | None,
    allow_pickle: bool,
) -> SavedCheckpoint:
    """Bring the tensors of ``state`` to ``step``, on all ranks or on none of them for good."""
    path = directory.of_step(step)

    def open_step() -> SavedCheckpoint:
        return SavedCheckpoint(path, read_manifest(path), vote.rank, allow_pickle, only, strict)

    with span("read the manifest", step):
        saved = vote.all_agree(open_step)

    def match_step() -> list[Target]:
        return match(saved, state, strict, only)

    def load_step() -> int:
        plan = plan_load(saved.manifest.tensors, targets)
        return load(saved.path, saved.manifest, plan, threads=config.read_threads, direct_io=config.direct_io)

    try:
        with span("match names", step):
            targets = vote.all_agree(match_step)
        with span("load tensors", step):
            vote.all_agree(load_step)
    except BaseException:
        saved.roll_back()
        raise
    return saved


def _apply_on_all(vote: Vote, saved: SavedCheckpoint, state: Mapping[str, Any], only: Sequence[str] | None) -> None:
    """Take Python values back on all ranks; what is refused now is too late to be only the caller's error."""
    try:
        vote.all_agree(lambda: _apply_python(saved, state, only))
    except Exception as error:
        raise RestoreError(
            f"{saved.path}: the tensors were restored, but not all Python values, so the state must not be trained "
            f"({type(error).__name__}: {error})"
        ) from error


@without_gc()
def _apply_python(saved: SavedCheckpoint, state: Mapping[str, Any], only: Sequence[str] | None) -> None:
    """Take Python values back; immutable ones are put into their container."""
    context = make_context(state, saved.saved_rank)
    found = [(provider_for(value, name), name, value, into, key) for name, value, into, key in leaves(state)]
    for provider, name, value, container, key in sorted(found, key=lambda leaf: leaf[0].applies_last):
        if selected_section(name, only):
            now = provider.apply(value, name, context, saved)
            if now is not value:
                container[key] = now


class Vote:
    """Ranks do the same thing and go on together: all succeeded, or all raise. One per channel: it counts its votes."""

    def __init__(self, channel: Channel, timeout_s: float) -> None:
        self.rank = channel.rank
        self._channel = channel
        self._timeout_s = timeout_s
        self._count = 0

    def leader(self, payload: bytes) -> bytes:
        return self._gather(payload)[0]

    def all_agree(self, act: Callable[[], T]) -> T:
        """``act()`` on every rank.

        Raises:
            DamagedCheckpointError: some rank found damage.
            Exception: this rank's other error; on the others a ``ValueError`` that quotes it.
        """
        result, failure = None, None
        try:
            result = act()
        except Exception as error:  # noqa: BLE001  (every rank learns of it and raises)
            failure = error
        kind = "damaged" if isinstance(failure, DamagedCheckpointError) else "error" if failure else "ok"
        answers = [json.loads(raw) for raw in self._gather(json.dumps([kind, str(failure)]).encode())]
        if failure is not None and kind == "error":
            raise failure
        bad = [(kind, f"rank {rank}: {text}") for rank, (kind, text) in enumerate(answers) if kind != "ok"]
        if bad:
            text = "; ".join(dict.fromkeys(text for _, text in bad))
            raise ValueError(text) if any(kind == "error" for kind, _ in bad) else DamagedCheckpointError(text)
        return result  # type: ignore[return-value]

    def _gather(self, payload: bytes) -> list[bytes]:
        self._count += 1  # keys must never repeat
        return self._channel.gather(f"restore/{self._count}", payload, self._timeout_s)
