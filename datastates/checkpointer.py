"""Checkpointer: take checkpoints at every step without being felt, and restore the newest whole one."""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from datastates import storage_ops
from datastates.accounting import Accounts
from datastates.capture import EVERYTHING, Captured, StateCapture
from datastates.config import MB, CheckpointerConfig, CheckpointStats
from datastates.coordination import Coordinator, prove_one_directory
from datastates.directory import CheckpointDirectory
from datastates.errors import (
    ArenaExhaustedError,
    CheckpointError,
    CoordinationError,
    RestoreError,
)
from datastates.gate import unwatch_optimizers, watch_optimizers
from datastates.handle import Checkpoint
from datastates.lifetime import EXIT_TIMEOUT_S, closed, opened
from datastates.restore import Vote, restore
from datastates.saving import SavePipeline
from datastates.sight import events
from datastates.sight.bus import emit, remove_sink, sinks
from datastates.sight.events import Origin
from datastates.sight.observed import observe
from datastates.sight.sinks import open_event_file
from datastates.sight.spans import span
from datastates.sight.stalls import StallLog, StallReport
from datastates.tiers.library import Library
from datastates.tiers.replication import Replication

logger = logging.getLogger("datastates")


class Checkpointer:
    """Lazy asynchronous checkpoints of a training state in one directory.

    Source: DataStates-LLM (HPDC 2024), section 5; ``docs/architecture.md`` shows the chain.

    Construction is collective where ``torch.distributed`` is initialised with more than one rank, and so are
    :meth:`checkpoint`, :meth:`restore` and :meth:`close`; all ranks make the same calls in the same order, from the
    thread that trains. As a context manager it drains on exit.

    Args:
        directory: where checkpoints go; one directory that all ranks see. Made if missing.
        options: fields of :class:`datastates.CheckpointerConfig`.

    Raises:
        NotOneDirectoryError: some ranks see another directory.
        ValueError, TypeError: a bad option.
    """

    def __init__(self, directory: str | os.PathLike[str], **options: Any) -> None:
        self.config = CheckpointerConfig.of(options)
        self._directory = CheckpointDirectory(directory)
        self._coordinator = Coordinator(self.config.commit_timeout_s, self.config.alone)
        self._channel = self._coordinator.channel()
        if self._channel.num_ranks > 1:
            prove_one_directory(self._directory.path, self._channel, self.config.commit_timeout_s)
        else:
            storage_ops.make_directories(self._directory.path)
        self._vote = Vote(self._channel, self.config.commit_timeout_s)
        self._capture = StateCapture(self._channel.rank, self.config.lazy)
        self.origin = Origin(str(self._directory.path), self._channel.rank)
        """Whose events these are."""
        self._accounts = Accounts(self.config, self._directory, self.origin)
        self._library = Library(self._directory, self.config.replicate_to)
        self._replication = self._make_replication()
        self._pipeline = SavePipeline(
            self._directory,
            self.config,
            (self._coordinator.channel(), self._coordinator.channel()),
            self._accounts.finished,
            self._replication,
        )
        self._event_file = open_event_file(self.config.events, self.origin, self._channel.num_ranks)
        self._stalls = StallLog(
            self.origin, self._pipeline.chain, self._pipeline.timeline, self.config.stall_warning_share
        )
        self._first_begun_s: float | None = None
        self._uncopied: collections.deque[Checkpoint] = collections.deque()  # as the training thread knows them
        self._lock = threading.Lock()
        self._in_flight: dict[int, Checkpoint] = {}  # guarded by _lock
        self._ordinal = 0
        self._unusable: str | None = None
        self._closed = False
        watch_optimizers(self)
        observe(self)
        opened(self)

    def _make_replication(self) -> Replication | None:
        if not self.config.replicate_to:
            return None
        tiers, channel = self.config.replicate_to, self._coordinator.channel()
        return Replication(tiers, self._library.store, channel, self.origin, self._accounts.replicated)

    # ---- taking checkpoints ----

    def checkpoint(
        self, step: int, state: Mapping[str, Any], *, metadata: Mapping[str, Any] | None = None
    ) -> Checkpoint:
        """Take a checkpoint of ``state`` as it is now, and return at once.

        What an optimizer in ``state`` writes is copied behind the next forward and backward; every other tensor and all
        Python values are copied before this returns. Collective.

        Args:
            step: the step just completed, >= 0; :meth:`restore` will return ``step + 1``.
            state: names to modules, optimizers, tensors, ``Stateful`` objects, plain Python values, or dicts of those.
            metadata: JSON values to keep in the manifest.

        Returns:
            Handle with the futures ``safe_to_mutate``, ``written``, ``durable`` and ``replicated``.

        Raises:
            CheckpointError: an earlier failure that is due (``on_failure``, ``max_consecutive_failures``).
            ArenaExhaustedError: ``policy="error"`` and no room (on one rank; on several, the futures raise it).
            TypeError, ValueError: the state or the arguments cannot be stored; nothing was begun (on several ranks: the
                others hear of it, and this checkpoint fails on them).
        """
        begun = time.perf_counter()
        self._first_begun_s = self._first_begun_s or time.monotonic()
        with span("checkpoint()", step):
            taken = self._checkpoint(step, state, metadata)
        self._accounts.begun(time.perf_counter() - begun)
        return taken

    def _checkpoint(self, step: int, state: Mapping[str, Any], metadata: Mapping[str, Any] | None) -> Checkpoint:
        self._check_usable()
        try:
            self._accounts.raise_due()
            begun_s = time.time(), time.monotonic()
            notes, captured = self._take(step, state, metadata)
        except Exception as error:
            self._tell_the_others(step, error)
            raise
        if sinks:
            self._tell_captured(step, captured, *begun_s)
        taken = Checkpoint(step, self._ordinal, captured, notes)
        self._uncopied.append(taken)
        self._begin(taken)
        return taken

    def _tell_captured(self, step: int, captured: Captured, begun_unix_s: float, begun_s: float) -> None:
        """Both at once, and not before the arguments have proved good; but before the lanes tell what they did."""
        emit(events.Begun(self.origin, step=step, unix_s=begun_unix_s, monotonic_s=begun_s))
        structure = captured.structure
        call_s = time.monotonic() - begun_s
        counted = {"num_tensors": len(structure.held), "size_bytes": structure.nbytes}
        emit(events.Captured(self.origin, step=step, call_s=call_s, **counted))

    def _take(
        self, step: int, state: Mapping[str, Any], metadata: Mapping[str, Any] | None
    ) -> tuple[dict[str, Any], Captured]:
        if type(step) is not int or step < 0:
            raise ValueError(f"step is {step!r}, expected an int >= 0")
        if not isinstance(state, Mapping):
            raise TypeError(f"state is a {type(state).__qualname__}, expected a mapping such as {{'model': model}}")
        notes: dict[str, Any] = json.loads(json.dumps(dict(metadata or {}), allow_nan=False))
        window = {"off": 0, "sample": self.config.sample_bytes, "full": EVERYTHING}[self.config.verify_immutability]
        captured = self._capture.take(state, self._ordinal * self.config.sample_bytes, window)
        try:
            self._refuse_if_full(captured.structure.nbytes)
        except ArenaExhaustedError:
            captured.let_go()
            raise
        return notes, captured

    def _tell_the_others(self, step: object, error: Exception) -> None:
        """Ranks count checkpoints; one that left a call out would be out of step with the others for ever."""
        if self._channel.num_ranks > 1:
            step = step if type(step) is int else -1
            self._begin(Checkpoint(step, self._ordinal, None, {}, refusal=f"{type(error).__name__}: {error}"))

    def _begin(self, taken: Checkpoint) -> None:
        self._ordinal += 1
        with self._lock:
            self._in_flight[taken.ordinal] = taken
        taken.durable.add_done_callback(self._landed(taken.ordinal))
        self._pipeline.put(taken)

    def gate(self) -> None:
        """Wait until everything captured so far may be written to.

        Call it before any mutation of checkpointed state other than ``optimizer.step()``, which passes one by itself.

        Raises:
            CheckpointError: a failure that is due.
        """
        self._pass_gate(None)

    def wait(self) -> None:
        """Wait until every checkpoint begun is durable or has failed; not for copies in tiers.

        Raises:
            CheckpointError: a failure that is due.
        """
        self._land_all()
        self._accounts.raise_due()

    def _land_all(self) -> None:
        with self._lock:
            waiting = list(self._in_flight.values())
        for checkpoint in waiting:
            checkpoint.durable.exception()
        self._uncopied.clear()

    def close(self) -> None:
        """Drain, copies to tiers included, and release everything. Idempotent.

        :meth:`restore` and :meth:`checkpoint` refuse afterwards.

        Raises:
            CheckpointError: a failure that is due.
        """
        if not self._closed:
            self._drain(None)
            self._accounts.raise_due()

    def _drain(self, timeout_s: float | None) -> None:
        self._closed = True
        if not self._pipeline.close(timeout_s):
            logger.warning("%s: gave up the last checkpoints after %.0f s", self._directory.path, timeout_s)
            return
        closed(self)  # not before: a drain that Ctrl-C ended is made up for at exit, and gated until then
        unwatch_optimizers(self)
        self._uncopied.clear()
        self._capture.forget()
        self._directory.unlock()
        self._leave_together()
        if self._event_file is not None:
            remove_sink(self._event_file)
            self._event_file.close()

    def _close_at_exit(self) -> None:
        self._drain(EXIT_TIMEOUT_S)

    def _close_in_child(self) -> None:
        """No lock is taken here: a thread that is the parent's alone may have held it."""
        self._closed = True
        self._uncopied.clear()
        self._directory.unlock()  # the lock stays the parent's, and does not outlive it through this child

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except CheckpointError:
            if error is None:
                raise
            logger.exception("while leaving because of %r", error)

    # ---- looking back ----

    def restore(
        self,
        state: Mapping[str, Any],
        *,
        strict: bool = True,
        only: str | list[str] | None = None,
        allow_pickle: bool = False,
    ) -> int:
        """Bring ``state`` to the newest whole checkpoint, in place; every byte is verified. Collective.

        One that only a tier has (``replicate_to``) is first fetched into the directory, by rank 0.
        Damage anywhere makes all ranks fall back together to the next older checkpoint, with a warning that names it.
        Works on any number of ranks: replicated and sharded tensors are cut anew, Python values and tensors of one rank
        alone come back to the same rank (rank modulo the number of ranks that saved).

        Args:
            state: as for :meth:`checkpoint`; tensors must have the stored shapes and dtypes. Optimizer state that the
                first step would create is created.
            strict: refuse if names are missing on either side; otherwise only what both have is restored.
            only: name pattern or patterns (``"model.*"``) that limit what is restored.
            allow_pickle: load values that were stored with ``datastates.pickled``.

        Returns:
            The next step to do: the stored step + 1, or 0 if there is no checkpoint.

        Raises:
            RestoreError: checkpoints exist and none could be restored; the live state must not be trained.
            ValueError: the state does not fit the checkpoint (names, shapes, dtypes); no value was changed.
        """
        self._check_usable(for_restore=True)
        if sinks:
            emit(events.RestoreBegun(self.origin))
        begun_s = time.monotonic()
        try:
            with span("restore()"):
                step, damaged = self._restore(state, strict, only, allow_pickle)
        except Exception as error:
            if sinks:
                seconds, kind = time.monotonic() - begun_s, type(error).__name__
                emit(events.RestoreFailed(self.origin, error=str(error), error_type=kind, seconds=seconds))
            raise
        if sinks:
            seconds, steps = time.monotonic() - begun_s, tuple(sorted(damaged))
            emit(events.RestoreEnded(self.origin, next_step=step, seconds=seconds, damaged_steps=steps))
        return step

    def _restore(
        self, state: Mapping[str, Any], strict: bool, only: str | list[str] | None, allow_pickle: bool
    ) -> tuple[int, set[int]]:
        self._land_all()  # a gate for everything; failures of the past do not keep anybody from going back
        patterns = [only] if isinstance(only, str) else only
        try:
            step, damaged = restore(
                self._library,
                self._vote,
                state,
                config=self.config,
                strict=strict,
                only=patterns,
                allow_pickle=allow_pickle,
            )
        except (RestoreError, CoordinationError) as error:
            self._unusable = str(error)
            raise
        except BaseException as error:
            if not isinstance(error, Exception):  # Ctrl-C, perhaps in the middle of a tensor
                self._unusable = f"it was interrupted ({error!r})"
            raise
        self._pipeline.damaged.update(damaged)
        if self._replication is not None:
            self._replication.restored(self._directory, step - 1, damaged)
        self._pipeline.forget_bases()
        self._accounts.begin_anew()
        if step and only is None:  # a part, or nothing at all, does not mend what a failed restore has left
            self._unusable = None
        return step, damaged

    def steps(self) -> list[int]:
        """Published steps, here and in the tiers, ascending.

        Raises:
            RestoreError: a tier does not answer, and there is none here.
        """
        return sorted({place.step for place in self._library.places()})

    def latest(self) -> Path | str | None:
        """The newest checkpoint whose manifest and file sizes are intact: its path, or its URL if only a tier has it.

        ``None`` if there is none.

        Raises:
            RestoreError: a tier does not answer, and there is none here.
        """
        return self._library.latest()

    def stats(self) -> CheckpointStats:
        """Counters since construction."""
        retries = self._replication.num_retries() if self._replication is not None else 0
        arena_bytes = self._pipeline.arena_bytes()
        return replace(self._accounts.stats(), arena_bytes=arena_bytes, num_replication_retries=retries)

    def stall_report(self) -> StallReport:
        """How long training has waited for checkpoints, and why; ``print`` it, or look at its fields."""
        stats = self.stats()
        elapsed_s = 0.0 if self._first_begun_s is None else time.monotonic() - self._first_begun_s
        return self._stalls.report(
            num_checkpoints=stats.num_begun,
            elapsed_s=elapsed_s,
            call_s=stats.call_s_total,
            waited_s=stats.gate_wait_s_total,
        )

    def arena_use(self) -> tuple[int, int]:
        """Bytes of the arena that hold something now, and its size, bytes."""
        return self._pipeline.arena_use()

    # ---- the gate ----

    def _before_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._uncopied or not self._closed:
            self._pass_gate(optimizer)

    def _pass_gate(self, optimizer: torch.optim.Optimizer | None) -> None:
        if self._uncopied:
            begun = time.perf_counter()
            if optimizer is None:
                while self._uncopied:
                    checkpoint = self._uncopied.popleft()
                    with self._stalls.watching(checkpoint):
                        checkpoint.wait_copied()
            else:
                for checkpoint in list(self._uncopied):
                    with self._stalls.watching(checkpoint):
                        checkpoint.wait_groups_copied(checkpoint.groups_written_by(optimizer))
                    if checkpoint.safe_to_mutate.done():
                        with contextlib.suppress(ValueError):  # another thread's optimizer was faster
                            self._uncopied.remove(checkpoint)
            self._accounts.waited(time.perf_counter() - begun)
        self._accounts.raise_due()

    # ---- what it takes, and how it ends ----

    def _refuse_if_full(self, size_bytes: int) -> None:
        if self.config.policy != "error" or self._channel.num_ranks > 1 or self._pipeline.has_room_for(size_bytes):
            return
        raise ArenaExhaustedError(
            f"the arena has no room for {size_bytes / MB:.0f} MB yet: storage is slower than training; checkpoint less "
            "often, enlarge arena_mb, or use policy='wait'"
        )

    def _landed(self, ordinal: int) -> Callable[[object], None]:
        """What takes a checkpoint off those in flight: not before its future says so, or wait() could miss it."""

        def landed(durable: object) -> None:
            with self._lock:
                self._in_flight.pop(ordinal, None)

        return landed

    def _check_usable(self, for_restore: bool = False) -> None:
        if self._closed:
            raise CheckpointError("this checkpointer is closed; make a new one")
        if self._unusable and not for_restore:
            raise RestoreError(f"the live state is unusable since a failed restore: {self._unusable}")

    def _leave_together(self) -> None:
        """Rank 0 hosts the store: it stays until the others have had their last answer."""
        try:
            self._channel.leave(min(30.0, self.config.commit_timeout_s))
        except CheckpointError as error:
            logger.warning("closing: %s", error)
        self._coordinator.close()
