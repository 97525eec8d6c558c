"""Saving: what happens to a captured checkpoint behind training, in four lanes.

    plan     agree with the other ranks, submit to the native engine (which copies and writes), write the Python state
    copied   see every source copied, let go of it
    written  see the data file written and fsynced
    commit   gather every rank's digests; rank 0 writes the manifest and publishes; everyone learns the outcome

Lanes work in the order of the calls, the same on all ranks, so that exchanges match. Whatever fails here fails that
checkpoint, on all ranks, and nothing else.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datastates import manifest, storage_ops
from datastates.agreement import Planner, begin_message, refusal
from datastates.bulk import without_gc
from datastates.config import CheckpointerConfig
from datastates.coordination import Channel
from datastates.delta import Base, DeltaBases, new_content_key
from datastates.directory import CheckpointDirectory, data_file_name, delta_file_name, objects_file_name
from datastates.errors import CheckpointError, MutationError, StorageFullError
from datastates.handle import Checkpoint
from datastates.lanes import Lane
from datastates.publishing import NOTHING, Publisher, Volume
from datastates.save_job import SaveJob, as_checkpoint_error, forget_frames
from datastates.sight.bus import emit, sinks
from datastates.sight.events import Agreed, ArenaAllocated, Copied, Origin, Submitted, Written
from datastates.sight.spans import snapshot_is_of, span
from datastates.sight.stalls import ChainReading
from datastates.sight.timeline import Activity, Cause, Timeline
from datastates.telling import error_text, json_bytes
from datastates.tiers.replication import Replication

import _elastates

logger = logging.getLogger("datastates")
Finished = Callable[[Checkpoint, CheckpointError | None, Volume], None]
"""(checkpoint, error or None, what was published)."""


class SavePipeline:
    """The lanes of one checkpointer. ``finished`` is called once for every checkpoint, on a lane."""

    def __init__(
        self,
        directory: CheckpointDirectory,
        config: CheckpointerConfig,
        channels: tuple[Channel, Channel],
        finished: Finished,
        replication: Replication | None,
    ) -> None:
        self._directory = directory
        self._config = config
        self._channel = channels[1]
        self._plan_channel = channels[0]
        self._finished = finished
        self._origin = Origin(str(directory.path), channels[1].rank)
        self.timeline = Timeline()
        """What the plan lane was busy with."""
        self._bases = DeltaBases(config.full_every)
        self._publisher = Publisher(directory, config, channels[1], self._bases)
        self._replication = replication
        self._planner = Planner(channels[0], config.chunk_bytes, config.commit_timeout_s, config.fine_extent_bytes)
        self._engine: Any = None
        self._engine_lock = threading.Lock()
        self._arena_bytes = 0
        self._plan_lane: Lane[SaveJob] = Lane("ds-plan", self._plan, self._give_up)
        self._copied_lane: Lane[SaveJob] = Lane("ds-copied", self._see_copied, self._give_up)
        self._written_lane: Lane[SaveJob] = Lane("ds-written", self._see_written, self._give_up)
        self._commit_lane: Lane[SaveJob] = Lane("ds-commit", self._commit, self._give_up)

    @property
    def damaged(self) -> set[int]:
        """Steps that a restore found damaged: their directories make way when the step is taken again."""
        return self._publisher.damaged

    def forget_bases(self) -> None:
        """Let the next checkpoint be a full one."""
        self._bases.clear()

    def put(self, checkpoint: Checkpoint) -> None:
        self._plan_lane.put(SaveJob(checkpoint))

    def has_room_for(self, size_bytes: int) -> bool:
        """Whether the arena could take that many bytes now."""
        with self._engine_lock:
            return self._engine is None or bool(self._engine.has_credit_for(size_bytes))

    def arena_bytes(self) -> int:
        """Size of the arena; 0 before the first checkpoint unless ``arena_mb`` is set."""
        return self._arena_bytes

    def arena_use(self) -> tuple[int, int]:
        """Bytes of the arena that are lent out, and its size."""
        engine = self._engine
        stats = engine.stats() if engine is not None else {"arena_bytes": 0, "free_bytes": 0}
        return stats["arena_bytes"] - stats["free_bytes"], stats["arena_bytes"]

    def chain(self) -> ChainReading | None:
        """The engine's clocks and counters now; ``None`` while there is no engine."""
        engine = self._engine  # one look: close() may take it away
        return None if engine is None else ChainReading.of(engine.stats())

    def close(self, timeout_s: float | None = None) -> bool:
        """Finish every checkpoint, then end the threads; returns whether ``timeout_s`` was enough. Idempotent."""
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        for lane in (self._plan_lane, self._copied_lane, self._written_lane, self._commit_lane):
            if not lane.close(None if end_s is None else max(0.0, end_s - time.monotonic())):
                return False
        left_s = None if end_s is None else max(0.0, end_s - time.monotonic())
        if self._replication is not None and not self._replication.close(left_s):
            return False
        with self._engine_lock:
            if self._engine is not None:
                self._engine.close()
                self._engine = None  # its memory goes now, not when the collector comes by
        return True

    # ---- plan lane ----

    def _plan(self, job: SaveJob) -> None:
        with span("plan", job.checkpoint.step):
            self._plan_job(job)

    def _plan_job(self, job: SaveJob) -> None:
        checkpoint = job.checkpoint
        try:
            with span("agree", checkpoint.step):
                self._agree(job)
        except Exception as error:  # noqa: BLE001  (a lane accounts for everything)
            self._give_up(job, error)
            return
        try:
            self._submit(job)
        except Exception as error:  # noqa: BLE001
            job.error = as_checkpoint_error(checkpoint, error, self._channel.rank)
            if checkpoint.snapshot is None:  # else the engine has it: the gate waits until it has let go of the sources
                checkpoint.submitted(None)
        self._copied_lane.put(job)

    def _agree(self, job: SaveJob) -> None:
        """Give the job its plan, its directory and its base, if it has one."""
        checkpoint = job.checkpoint
        captured = checkpoint.captured
        key, policy = str(checkpoint.ordinal), self._config.policy
        if captured is None:
            self._planner.agree(None, refusal(checkpoint.step, checkpoint.refusal), key, policy)
            raise AssertionError("a checkpoint that some rank refuses is agreed on by none")
        attempt, problem = "", ""
        offered: list[Base] = []
        try:
            if self._channel.rank == 0:
                attempt = self._begin_attempt(checkpoint.step).name
            offered = self._bases.offer(checkpoint.ordinal, self._directory.path / attempt if attempt else None)
        except Exception as error:  # noqa: BLE001
            problem = error_text(error)
        alone = self._channel.num_ranks == 1
        ready = policy == "wait" or self.has_room_for(self._planner.file_bytes(captured))
        bases = [base.step for base in offered]
        begin = begin_message(captured, checkpoint.step, ready, attempt, problem, alone, bases)
        chosen = None
        begun_s = time.monotonic()
        try:
            job.plan, name, chosen = self._planner.agree(captured, begin, key, policy)
        except Exception:
            if attempt:
                self._remove_empty(self._directory.path / attempt)
            raise
        finally:
            job.base = self._bases.settle(offered, chosen)
            waits = self._plan_channel.take_waits()
            self.timeline.add(Activity(Cause.AGREEMENT, wait.begin_s, wait.end_s, wait.rank) for wait in waits)
        if sinks:
            waited = {wait.rank: wait.end_s - wait.begin_s for wait in waits}
            agreement_s = time.monotonic() - begun_s
            emit(Agreed(self._origin, step=checkpoint.step, agreement_s=agreement_s, waited_s_by_rank=waited))
        job.attempt = self._directory.path / name

    def _begin_attempt(self, step: int) -> Path:
        self._directory.lock()
        if step not in self.damaged and self._directory.of_step(step).exists():
            raise FileExistsError(
                f"step {step} is published already in {self._directory.path} and nothing is ever overwritten; continue "
                "from restore()'s step, or use another directory"
            )
        return self._directory.begin(step)

    @staticmethod
    def _remove_empty(attempt: Path) -> None:
        """Nobody writes into an attempt that was not agreed on; should a rank think otherwise, its file stays."""
        try:
            storage_ops.remove_directory(attempt)
        except OSError:
            return  # the next writer's lock() clears it

    def _submit(self, job: SaveJob) -> None:
        assert job.plan is not None and job.attempt is not None and job.checkpoint.captured is not None
        captured = job.checkpoint.captured
        rank = self._channel.rank
        file = job.plan.files[rank]
        base = job.base if job.base is not None and job.base.layout == job.plan.layout else None
        if base is None:
            self._check_space(job.plan.size_bytes)
        engine = self._engine_for(file.size_bytes, job.checkpoint.step)
        chain = ChainReading.of(engine.stats())
        path = job.attempt / (data_file_name(rank) if job.base is None else delta_file_name(rank))
        snapshot = engine.submit(
            **file.submission(path, captured.refs),
            num_groups=captured.structure.num_groups,
            content_key=new_content_key() if self._config.full_every is not None else None,
            base=base.digests if base is not None else None,
        )
        job.checkpoint.submitted(snapshot, file.size_bytes, chain)
        snapshot_is_of(snapshot.id, job.checkpoint.step)
        if sinks:
            emit(Submitted(self._origin, **self._progress(job.checkpoint)))
        with self.timeline.doing(Cause.PYTHON_STATE), span("write Python state", job.checkpoint.step):
            job.objects = self._write_objects(job.attempt, captured.python)

    @staticmethod
    def _progress(checkpoint: Checkpoint) -> dict[str, Any]:
        """What events of milestones have in common."""
        since_begun_s = time.monotonic() - checkpoint.begun_s
        return {"step": checkpoint.step, "size_bytes": checkpoint.size_bytes, "since_begun_s": since_begun_s}

    def _check_space(self, size_bytes: int) -> None:
        stat = os.statvfs(self._directory.path)
        free = stat.f_bavail * stat.f_frsize
        if free < size_bytes:
            raise StorageFullError(
                f"{self._directory.path} has {free / 1e6:.0f} MB free, the checkpoint takes {size_bytes / 1e6:.0f} MB; "
                "free space or lower keep_last"
            )

    def _engine_for(self, file_bytes: int, step: int) -> Any:
        with self._engine_lock:
            if self._engine is None:
                begun_s = time.monotonic()
                with self.timeline.doing(Cause.ARENA), span("allocate the arena", step):
                    self._engine = self._config.make_engine(file_bytes)
                self._arena_bytes = int(self._engine.stats()["arena_bytes"])
                if sinks:
                    seconds = time.monotonic() - begun_s
                    emit(ArenaAllocated(self._origin, step=step, size_bytes=self._arena_bytes, seconds=seconds))
            return self._engine

    @without_gc()
    def _write_objects(self, attempt: Path, python: dict[str, Any]) -> manifest.ObjectsFile:
        content = json_bytes(python)
        name = objects_file_name(self._channel.rank)
        storage_ops.write_synced(attempt / name, content)
        return manifest.ObjectsFile(name, len(content), _elastates.crc32c(content))

    # ---- copied and written lanes ----

    def _see_copied(self, job: SaveJob) -> None:
        with span("see copied", job.checkpoint.step):
            self._await_copied(job)
        self._written_lane.put(job)

    def _await_copied(self, job: SaveJob) -> None:
        checkpoint = job.checkpoint
        if checkpoint.snapshot is not None:
            try:
                checkpoint.snapshot.watch_copied()
            except Exception as error:  # noqa: BLE001
                job.error = job.error or self._explain(job, error)
            checkpoint.snapshot.release_owner()
        checkpoint.let_go()
        if job.error is None:
            checkpoint.safe_to_mutate._resolve(None)
            if sinks:
                submitted_s, copied_s, _ = checkpoint.snapshot.times()
                emit(Copied(self._origin, **self._progress(checkpoint), copy_s=copied_s - submitted_s))
        else:
            self._fail(job, job.error)

    def _see_written(self, job: SaveJob) -> None:
        with span("see written", job.checkpoint.step):
            self._await_written(job)
        self._commit_lane.put(job)

    def _await_written(self, job: SaveJob) -> None:
        checkpoint = job.checkpoint
        if checkpoint.snapshot is not None:
            try:
                checkpoint.snapshot.wait_written()  # after a failure: until nobody holds the file open any more
            except Exception as error:  # noqa: BLE001
                job.error = job.error or self._explain(job, error)
        if job.error is None:
            checkpoint.written._resolve(None)
            if sinks:
                submitted_s, _, written_s = checkpoint.snapshot.times()
                emit(Written(self._origin, **self._progress(checkpoint), write_s=written_s - submitted_s))
        else:
            self._fail(job, job.error)

    def _explain(self, job: SaveJob, error: Exception) -> CheckpointError:
        if isinstance(error, _elastates.StatusError) and error.args[0] == "mutated":
            assert job.checkpoint.captured is not None
            held = job.checkpoint.captured.structure.held
            indices = error.args[1].rpartition(": ")[2]  # behind the name of the actor that found out
            names = [held[int(index)].name for index in indices.split(",")]
            shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            return MutationError(
                f"checkpoint of step {job.checkpoint.step} on rank {self._channel.rank}: {shown} changed before the "
                "copy was complete; call checkpoints.gate() before writing to it by other means than optimizer.step()"
            )
        return as_checkpoint_error(job.checkpoint, error, self._channel.rank)

    # ---- commit lane ----

    def _commit(self, job: SaveJob) -> None:
        try:
            with span("publish", job.checkpoint.step):
                final, volume = self._publisher.publish(job)
        except Exception as error:  # noqa: BLE001
            self._give_up(job, error)
            return
        self._release_base(job)
        self._finished(job.checkpoint, None, volume)  # first: who sees it durable sees it counted
        job.checkpoint.durable._resolve(final)
        if self._replication is None:
            job.checkpoint.replicated._resolve(None)
        else:
            self._replication.published(job.checkpoint, final)
        if self._channel.rank == 0:
            with span("prune"):
                self._publisher.prune(self._replication.pinned() if self._replication is not None else ())

    def _give_up(self, job: SaveJob, error: Exception) -> None:
        failure = as_checkpoint_error(job.checkpoint, error, self._channel.rank)
        job.checkpoint.let_go()
        self._release_base(job)
        self._fail(job, failure)

    def _release_base(self, job: SaveJob) -> None:
        if job.base is not None:
            self._bases.release(job.base)
            job.base = None

    def _fail(self, job: SaveJob, error: CheckpointError) -> None:
        """Account for the failure, once, and let the futures raise it."""
        if not job.reported:
            job.reported = True
            self._finished(job.checkpoint, error, NOTHING)
        forget_frames(error)
        job.checkpoint.fail(error)
