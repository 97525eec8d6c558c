"""Restore: bring a live state to the newest checkpoint that all ranks can load, bit for bit.

rank 0:     list the published steps, here and in the tiers
every rank: for each step, newest first
rank 0:       fetch it, if only a tier has it           -> all ranks go on with it, or all go on to the next
every rank:
              read the manifest, check files          -> all ranks agree it is whole, or all go on to the next
              match names, shapes, dtypes             -> a misfit is the caller's error, on all ranks
              read tensors in place, verify           -> all ranks agree, or all go on to the next
              take Python values back
"""

from __future__ import annotations

import functools
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from datastates.bulk import without_gc
from datastates.capture import leaves, make_context
from datastates.config import CheckpointerConfig
from datastates.coordination import Channel
from datastates.directory import read_manifest
from datastates.errors import CoordinationError, DamagedCheckpointError, RestoreError
from datastates.futures import CheckpointFuture
from datastates.loading import Target, load, plan_load
from datastates.providers import provider_for
from datastates.saved import SavedCheckpoint, match, selected_section
from datastates.sight.bus import emit, sinks
from datastates.sight.events import DamageFound, Origin, RestoreFellBack
from datastates.sight.spans import span
from datastates.telling import error_text
from datastates.tiers.library import LOCAL, Library, Place

logger = logging.getLogger("datastates")
T = TypeVar("T")

_AT_IT = b"at it"
_TOLD: dict[str, type[Exception]] = {"damaged": DamagedCheckpointError, "restore": RestoreError}
"""Errors that keep their type on the ranks that only hear of them."""


def restore(
    library: Library,
    vote: Vote,
    state: Mapping[str, Any],
    *,
    config: CheckpointerConfig,
    strict: bool,
    only: Sequence[str] | None,
    allow_pickle: bool,
) -> tuple[int, set[int]]:
    """See :meth:`datastates.Checkpointer.restore`; returns the next step and the steps found damaged."""
    places = [Place(*place) for place in vote.led(library.places)]
    damaged: dict[Place, str] = {}
    overwritten = False  # by values of one that turned out damaged

    def open_step(path: Path) -> SavedCheckpoint:
        return SavedCheckpoint(path, read_manifest(path), vote.rank, allow_pickle, only, strict)

    def load_targets(saved: SavedCheckpoint, targets: list[Target]) -> int:
        plan = plan_load(saved.manifest.tensors, targets)
        return load(saved.path, saved.manifest, plan, threads=config.read_threads, direct_io=config.direct_io)

    for place in places:
        saved: SavedCheckpoint | None = None
        try:
            path = _bring(library, vote, place, {place.step for place in damaged})
            with span("read the manifest", place.step):
                saved = vote.all_agree(functools.partial(open_step, path))
            load_on_all(saved, vote, state, functools.partial(load_targets, saved))
        except DamagedCheckpointError as error:
            damaged[place] = str(error)
            overwritten |= saved is not None and saved.is_overwriting
            logger.warning("checkpoint of step %d is damaged, falling back to an older one: %s", place.step, error)
            if sinks:
                origin = Origin(str(library.path), vote.rank)
                emit(DamageFound(origin, step=place.step, what=str(error)))
                emit(RestoreFellBack(origin, step=place.step, reason=str(error)))
            continue
        except (RestoreError, CoordinationError):
            raise
        except Exception as error:
            if overwritten:
                raise half_overwritten(library.path_of(place.step), error) from error
            raise
        with span("take Python values back", place.step):
            apply_on_all(saved, vote, state)
        return saved.manifest.step + 1, {place.step for place in damaged} - {saved.manifest.step}
    if damaged:
        report = "; ".join(f"step {place.step}: {why}" for place, why in damaged.items())
        raise RestoreError(
            f"no checkpoint of {library} can be restored and the live state may be half overwritten: {report}"
        )
    return 0, set()


def _bring(library: Library, vote: Vote, place: Place, damaged: set[int]) -> Path:
    """The checkpoint's path in the local directory, once it is there."""
    if place.tier != LOCAL:
        with span("fetch from a tier", place.step):
            vote.led(lambda: str(library.fetch(place, damaged)))
    return library.path_of(place.step)


def load_on_all(
    saved: SavedCheckpoint, vote: Vote, state: Mapping[str, Any], load_targets: Callable[[list[Target]], object]
) -> None:
    """Bring the tensors of ``state`` to a checkpoint, on all ranks or on none of them for good.

    Raises:
        DamagedCheckpointError: some rank found damage; values have changed if ``saved.is_overwriting``.
        RestoreError: something else failed on some rank, when values were being overwritten.
        ValueError: the state does not fit; no value was changed.
    """
    step = saved.manifest.step
    try:
        with span("match names", step):
            targets = vote.all_agree(lambda: match(saved, state))
        saved.is_overwriting = True
        with span("load tensors", step):
            vote.all_agree(lambda: load_targets(targets))
    except (DamagedCheckpointError, CoordinationError):
        saved.roll_back()
        raise
    except Exception as error:
        saved.roll_back()
        if saved.is_overwriting:
            raise half_overwritten(saved.path, error) from error
        raise
    except BaseException:
        saved.roll_back()
        raise


def apply_on_all(saved: SavedCheckpoint, vote: Vote, state: Mapping[str, Any]) -> None:
    """Take Python values back on all ranks; what is refused now is too late to be only the caller's error."""
    try:
        vote.all_agree(lambda: apply_python(saved, state))
    except Exception as error:
        raise half_restored(saved.path, error) from error


def half_overwritten(path: Path, error: Exception) -> RestoreError:
    """What to raise when restoring has failed with ``error`` and some tensors may have values of a checkpoint."""
    return RestoreError(f"{path}: the live state may be half overwritten and must not be trained ({error_text(error)})")


def half_restored(path: Path, error: Exception) -> RestoreError:
    """What to raise when tensors have been restored and taking Python values back has failed with ``error``."""
    return RestoreError(
        f"{path}: the tensors were restored, but not all Python values, so the state must not be trained "
        f"({error_text(error)})"
    )


@without_gc()
def apply_python(saved: SavedCheckpoint, state: Mapping[str, Any]) -> None:
    """Take Python values back; immutable ones are put into their container."""
    context = make_context(state, saved.saved_rank)
    found = [(provider_for(value, name), name, value, into, key) for name, value, into, key in leaves(state)]
    for provider, name, value, container, key in sorted(found, key=lambda leaf: leaf[0].comes_last(leaf[2])):
        if selected_section(name, saved.only):
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

    def led(self, act: Callable[[], T]) -> T:
        """``act()`` on rank 0, for as long as it takes; its result, which JSON can tell, on every rank.

        The others wait as long as rank 0 says, within the timeout, that it is still at it.

        Raises:
            DamagedCheckpointError, RestoreError: rank 0 raised it.
            Exception: rank 0's other error; on the others a ``ValueError`` that quotes it.
        """
        if self._channel.num_ranks == 1:
            return act()
        done: CheckpointFuture[T] = CheckpointFuture()
        if self.rank == 0:
            threading.Thread(target=_settle, args=(done, act), name="ds-lead", daemon=True).start()
            while not _settled_within(done, self._timeout_s / 4):
                self.leader(_AT_IT)
        else:
            done._resolve(None)  # type: ignore[arg-type]
        while self.leader(b"") == _AT_IT:
            pass
        result = self.all_agree(done.result)
        return cast(T, json.loads(self.leader(json.dumps(result).encode())))

    def all_agree(self, act: Callable[[], T]) -> T:
        """``act()`` on every rank.

        Raises:
            DamagedCheckpointError, RestoreError: some rank found that.
            Exception: this rank's other error; on the others a ``ValueError`` that quotes it.
        """
        result, failure = None, None
        try:
            result = act()
        except Exception as error:  # noqa: BLE001  (every rank learns of it and raises)
            failure = error
        kind = "ok" if failure is None else next((k for k, e in _TOLD.items() if isinstance(failure, e)), "error")
        answers = [json.loads(raw) for raw in self._gather(json.dumps([kind, str(failure)]).encode())]
        if failure is not None and kind != "damaged":
            raise failure
        bad = [(kind, f"rank {rank}: {text}") for rank, (kind, text) in enumerate(answers) if kind != "ok"]
        if bad:
            text = "; ".join(dict.fromkeys(text for _, text in bad))
            kinds = {kind for kind, _ in bad}
            raise ValueError(text) if "error" in kinds else _TOLD["restore" if "restore" in kinds else "damaged"](text)
        return result  # type: ignore[return-value]

    def _gather(self, payload: bytes) -> list[bytes]:
        self._count += 1  # keys must never repeat
        return self._channel.gather(f"restore/{self._count}", payload, self._timeout_s)


def _settle(done: CheckpointFuture[T], act: Callable[[], T]) -> None:
    try:
        done._resolve(act())
    except BaseException as error:  # noqa: BLE001  (raised where the result is asked for)
        done._fail(error)


def _settled_within(done: CheckpointFuture[T], timeout_s: float) -> bool:
    try:
        done.exception(timeout_s)
    except TimeoutError:
        return done.done()
    return True
