"""Saving: what happens to a captured checkpoint behind training, in four lanes.

    plan     agree with the other ranks, submit to the native engine (which copies and writes), write the Python state
    copied   see every source copied, let go of it
    written  see the data file written and fsynced
    commit   gather every rank's digests; rank 0 writes the manifest and publishes; everyone learns the outcome

Lanes work in the order of the calls, the same on all ranks, so that exchanges match. Whatever fails here fails that
checkpoint, on all ranks, and nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datastates import manifest
from datastates.agreement import Planner, SavePlan, begin_message, begin_problem, json_bytes
from datastates.config import CheckpointerConfig
from datastates.coordination import Channel
from datastates.data_file import DataFilePlan
from datastates.directory import (
    CheckpointDirectory,
    data_file_name,
    expired,
    objects_file_name,
    read_manifest,
    write_synced,
)
from datastates.errors import CheckpointError, CheckpointSkipped, MutationError, StorageFullError
from datastates.handle import Checkpoint
from datastates.lanes import Lane

import _elastates

logger = logging.getLogger("datastates")
Finished = Callable[[Checkpoint, CheckpointError | None, int], None]
"""(checkpoint, error or None, bytes published)."""


@dataclass
class _Job:
    """A checkpoint on its way through the lanes."""

    checkpoint: Checkpoint
    plan: SavePlan | None = None
    attempt: Path | None = None
    error: CheckpointError | None = None
    objects: manifest.ObjectsFile | None = None
    reported: bool = False


class SavePipeline:
    """The lanes of one checkpointer. ``finished`` is called once for every checkpoint, on a lane."""

    def __init__(
        self,
        directory: CheckpointDirectory,
        config: CheckpointerConfig,
        channels: tuple[Channel, Channel],
        finished: Finished,
    ) -> None:
        self._directory = directory
        self._config = config
        self._channel = channels[1]
        self._finished = finished
        self._planner = Planner(channels[0], config.chunk_bytes, config.commit_timeout_s)
        self._engine: Any = None
        self._engine_lock = threading.Lock()
        self._plan_lane: Lane[_Job] = Lane("ds-plan", self._plan)
        self._copied_lane: Lane[_Job] = Lane("ds-copied", self._see_copied)
        self._written_lane: Lane[_Job] = Lane("ds-written", self._see_written)
        self._commit_lane: Lane[_Job] = Lane("ds-commit", self._commit)
        self.damaged: set[int] = set()
        """Steps that a restore found damaged: their directories make way when the step is taken again."""

    def put(self, checkpoint: Checkpoint) -> None:
        self._plan_lane.put(_Job(checkpoint))

    def has_room_for(self, size_bytes: int) -> bool:
        """Whether the arena could take that many bytes now."""
        with self._engine_lock:
            return self._engine is None or bool(self._engine.has_credit_for(size_bytes))

    def arena_bytes(self) -> int:
        """Size of the arena; 0 before the first checkpoint unless ``arena_mb`` is set."""
        with self._engine_lock:
            return 0 if self._engine is None else int(self._engine.stats()["arena_bytes"])

    def close(self) -> None:
        """Finish every checkpoint, then end the threads. Idempotent."""
        self._plan_lane.close()
        self._copied_lane.close()
        self._written_lane.close()
        self._commit_lane.close()
        if self._engine is not None:
            self._engine.close()

    # ---- plan lane ----

    def _plan(self, job: _Job) -> None:
        checkpoint = job.checkpoint
        try:
            job.plan, job.attempt = self._agree(checkpoint)
        except Exception as error:  # noqa: BLE001  (a lane accounts for everything)
            self._give_up(job, error)
            return
        try:
            self._submit(job)
        except Exception as error:  # noqa: BLE001
            job.error = as_checkpoint_error(checkpoint, error, self._channel.rank)
            checkpoint.submitted(None)
        self._copied_lane.put(job)

    def _agree(self, checkpoint: Checkpoint) -> tuple[SavePlan, Path]:
        captured = checkpoint.captured
        assert captured is not None
        attempt, problem = "", ""
        if self._channel.rank == 0:
            try:
                self._directory.lock()
                if checkpoint.step not in self.damaged and self._directory.of_step(checkpoint.step).exists():
                    raise FileExistsError(
                        f"step {checkpoint.step} is published already in {self._directory.path} and nothing is ever "
                        "overwritten; continue from restore()'s step, or use another directory"
                    )
                attempt = self._directory.begin(checkpoint.step).name
            except Exception as error:  # noqa: BLE001
                problem = begin_problem(error)
        alone = self._channel.num_ranks == 1
        ready = self._config.policy == "wait" or self.has_room_for(captured.structure.nbytes)
        begin = begin_message(captured, checkpoint.step, ready, attempt, problem, alone)
        try:
            plan, name = self._planner.agree(captured, begin, str(checkpoint.ordinal), self._config.policy)
        except CheckpointError:
            if attempt:
                self._remove_empty(self._directory.path / attempt)
            raise
        return plan, self._directory.path / name

    @staticmethod
    def _remove_empty(attempt: Path) -> None:
        """Nobody writes into an attempt that was not agreed on; should a rank think otherwise, its file stays."""
        try:
            attempt.rmdir()
        except OSError:
            return  # the next writer's lock() clears it

    def _submit(self, job: _Job) -> None:
        assert job.plan is not None and job.attempt is not None and job.checkpoint.captured is not None
        captured = job.checkpoint.captured
        file = job.plan.files[self._channel.rank]
        self._check_space(job.plan.size_bytes)
        job.checkpoint.submitted(
            self._engine_for(file.size_bytes).submit(
                path=str(job.attempt / data_file_name(self._channel.rank)),
                header=file.header,
                refs=captured.refs,
                index=file.index,
                source_begin=file.source_begin,
                file_begin=file.begins,
                sizes=file.sizes,
                extent_ends=file.extent_ends,
                file_size=file.size_bytes,
                num_groups=captured.structure.num_groups,
            )
        )
        job.objects = self._write_objects(job.attempt, captured.python)

    def _check_space(self, size_bytes: int) -> None:
        stat = os.statvfs(self._directory.path)
        free = stat.f_bavail * stat.f_frsize
        if free < size_bytes:
            raise StorageFullError(
                f"{self._directory.path} has {free / 1e6:.0f} MB free, the checkpoint takes {size_bytes / 1e6:.0f} MB; "
                "free space or lower keep_last"
            )

    def _engine_for(self, file_bytes: int) -> Any:
        with self._engine_lock:
            if self._engine is None:
                self._engine = self._config.make_engine(file_bytes)
            return self._engine

    def _write_objects(self, attempt: Path, python: dict[str, Any]) -> manifest.ObjectsFile:
        content = json_bytes(python)
        name = objects_file_name(self._channel.rank)
        write_synced(attempt / name, content)
        return manifest.ObjectsFile(name, len(content), _elastates.crc32c(content))

    # ---- copied and written lanes ----

    def _see_copied(self, job: _Job) -> None:
        checkpoint = job.checkpoint
        if checkpoint.snapshot is not None:
            try:
                checkpoint.snapshot.wait_copied()
            except Exception as error:  # noqa: BLE001
                job.error = job.error or self._explain(job, error)
            checkpoint.snapshot.release_owner()
        checkpoint.captured = None
        if job.error is None:
            checkpoint.safe_to_mutate._resolve(None)
        else:
            self._fail(job, job.error)
        self._written_lane.put(job)

    def _see_written(self, job: _Job) -> None:
        checkpoint = job.checkpoint
        if checkpoint.snapshot is not None:
            try:
                checkpoint.snapshot.wait_written()  # after a failure: until nobody holds the file open any more
            except Exception as error:  # noqa: BLE001
                job.error = job.error or self._explain(job, error)
        if job.error is None:
            checkpoint.written._resolve(None)
        else:
            self._fail(job, job.error)
        self._commit_lane.put(job)

    def _explain(self, job: _Job, error: Exception) -> CheckpointError:
        if isinstance(error, _elastates.StatusError) and error.args[0] == "mutated":
            assert job.checkpoint.captured is not None
            held = job.checkpoint.captured.structure.held
            names = [held[int(index)].name for index in error.args[1].split(",")]
            shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            return MutationError(
                f"checkpoint of step {job.checkpoint.step} on rank {self._channel.rank}: {shown} changed before the "
                "copy was complete; call checkpoints.gate() before writing to it by other means than optimizer.step()"
            )
        return as_checkpoint_error(job.checkpoint, error, self._channel.rank)

    # ---- commit lane ----

    def _commit(self, job: _Job) -> None:
        try:
            final = self._publish(job)
        except Exception as error:  # noqa: BLE001
            self._give_up(job, error)
            return
        assert job.plan is not None
        self._finished(job.checkpoint, None, job.plan.size_bytes)  # first: who sees it durable sees it counted
        job.checkpoint.durable._resolve(final)
        if self._channel.rank == 0:
            self._prune()

    def _publish(self, job: _Job) -> Path:
        """The publish protocol; ``docs/format.md`` says why in this order."""
        assert job.plan is not None and job.attempt is not None
        timeout_s = self._config.commit_timeout_s
        key = f"{job.checkpoint.ordinal}"
        answers = self._channel.gather(f"written/{key}", self._digests(job), timeout_s)
        outcome = b""
        if self._channel.rank == 0:
            outcome = self._decide(job, [json.loads(answer) for answer in answers])
        outcome = self._channel.from_leader(f"published/{key}", outcome, timeout_s)
        if outcome != b"ok":
            raise job.error or CheckpointError(f"checkpoint of step {job.checkpoint.step}: {outcome.decode()}")
        return self._directory.of_step(job.checkpoint.step)

    def _digests(self, job: _Job) -> bytes:
        """What this rank wrote, or why it could not."""
        assert job.plan is not None and job.attempt is not None
        if job.error is None:
            try:
                _elastates.sync_directory(str(job.attempt))
                assert job.objects is not None
                crcs = job.checkpoint.snapshot.extent_crc32c()
                return json_bytes({"extent_crc32c": crcs.tolist(), "objects": vars(job.objects)})
            except Exception as error:  # noqa: BLE001
                job.error = as_checkpoint_error(job.checkpoint, error, self._channel.rank)
        return json_bytes({"error": str(job.error)})

    def _decide(self, job: _Job, answers: list[dict[str, Any]]) -> bytes:
        """Rank 0: publish if every rank has written its part, else say who has not."""
        assert job.attempt is not None
        errors = [f"rank {rank}: {answer['error']}" for rank, answer in enumerate(answers) if "error" in answer]
        try:
            if not errors:
                write_synced(job.attempt / manifest.FILE_NAME, self._manifest(job, answers))
                self._directory.publish(job.attempt, job.checkpoint.step, self.damaged)
                self.damaged.discard(job.checkpoint.step)
                return b"ok"
        except Exception as error:  # noqa: BLE001
            job.error = as_checkpoint_error(job.checkpoint, error, 0)
            errors = [str(job.error)]
        shutil.rmtree(job.attempt, ignore_errors=True)  # every rank has answered: nobody writes there any more
        return "; ".join(errors).encode()

    def _manifest(self, job: _Job, answers: list[dict[str, Any]]) -> bytes:
        assert job.plan is not None
        files = [
            _data_file(rank, planned, answer["extent_crc32c"])
            for rank, (planned, answer) in enumerate(zip(job.plan.files, answers, strict=True))
        ]
        content = manifest.Manifest(
            step=job.checkpoint.step,
            num_ranks=self._channel.num_ranks,
            tensors=job.plan.tensors,
            files=tuple(files),
            objects=tuple(manifest.ObjectsFile(**answer["objects"]) for answer in answers),
            aliases=job.plan.aliases,
            metadata=job.checkpoint.metadata,
            created_unix_s=time.time(),
        )
        return manifest.dump(content, job.plan.tensors_text)

    def _prune(self) -> None:
        """Let go of what retention does not keep, but only once the newest is known to be whole."""
        try:
            steps = self._directory.steps()
            old = expired(steps, self._config.keep_last, self._config.keep_every)
            if old:
                read_manifest(self._directory.of_step(steps[-1]))
                self._directory.remove(old)
        except Exception:
            logger.exception("retention could not remove old checkpoints of %s", self._directory.path)

    def _give_up(self, job: _Job, error: Exception) -> None:
        failure = as_checkpoint_error(job.checkpoint, error, self._channel.rank)
        job.checkpoint.captured = None
        self._fail(job, failure)

    def _fail(self, job: _Job, error: CheckpointError) -> None:
        """Account for the failure, once, and let the futures raise it."""
        if not job.reported:
            job.reported = True
            self._finished(job.checkpoint, error, 0)
        job.checkpoint.fail(error)


def _data_file(rank: int, planned: DataFilePlan, crcs: list[int]) -> manifest.DataFile:
    return manifest.DataFile(
        name=data_file_name(rank),
        size_bytes=planned.size_bytes,
        header_bytes=len(planned.header),
        header_crc32c=_elastates.crc32c(planned.header),
        extent_ends=planned.extent_ends,
        extent_crc32c=np.array(crcs, dtype=np.uint32),
    )


def as_checkpoint_error(checkpoint: Checkpoint, error: Exception, rank: int) -> CheckpointError:
    """``error`` as one that says which checkpoint failed, and where."""
    if isinstance(error, CheckpointSkipped | MutationError):
        return error
    text = f"{error.args[1]} ({error.args[0]})" if isinstance(error, _elastates.StatusError) else str(error)
    full = isinstance(error, _elastates.StatusError) and error.args[0] in ("no_space", "quota_exceeded")
    kind = StorageFullError if full else type(error) if isinstance(error, CheckpointError) else CheckpointError
    prefix = f"checkpoint of step {checkpoint.step} on rank {rank}: "
    if text.startswith(prefix) or (isinstance(error, kind) and text.startswith("checkpoint of step")):
        return error  # type: ignore[return-value]
    wrapped = kind(f"{prefix}{text if isinstance(error, DataErrors) else f'{type(error).__name__}: {text}'}")
    wrapped.__cause__ = error
    return wrapped


DataErrors = (CheckpointError, _elastates.StatusError)
