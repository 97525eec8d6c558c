"""Publishing: the last lane's work, which makes what all ranks have written one visible checkpoint.

``docs/format.md`` lists the sequence and says why it is in that order.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from datastates import manifest, storage_ops
from datastates.agreement import json_bytes
from datastates.config import CheckpointerConfig
from datastates.coordination import Channel
from datastates.data_file import DataFilePlan
from datastates.directory import CheckpointDirectory, data_file_name, expired
from datastates.errors import CheckpointError
from datastates.save_job import SaveJob, as_checkpoint_error
from datastates.sight.bus import emit, sinks
from datastates.sight.events import Origin, Pruned
from datastates.sight.spans import span

import _elastates

logger = logging.getLogger("datastates")


class Publisher:
    """Used by the commit lane alone."""

    def __init__(self, directory: CheckpointDirectory, config: CheckpointerConfig, channel: Channel) -> None:
        self._directory = directory
        self._config = config
        self._channel = channel
        self._published: dict[Path, int] = {}
        self._told: str | None = None  # key of the last outcome
        self.damaged: set[int] = set()
        """Steps that a restore found damaged: their directories make way when the step is taken again."""

    def publish(self, job: SaveJob) -> Path:
        """Collective: publish if every rank has written its part; returns the final path.

        Raises:
            CheckpointError: some rank failed or did not answer; nothing was published.
        """
        assert job.plan is not None and job.attempt is not None
        timeout_s = self._config.commit_timeout_s
        key = f"{job.checkpoint.ordinal}"
        with span("gather digests", job.checkpoint.step):
            answers = self._channel.gather(f"written/{key}", self._digests(job), timeout_s)
        if self._told is not None:
            self._channel.forget(self._told)  # who has come this far has read it
        self._told = f"published/{key}"
        outcome = b""
        if self._channel.rank == 0:
            with span("manifest and rename", job.checkpoint.step):
                outcome = self._decide(job, [json.loads(answer) for answer in answers])
        with span("hear the outcome", job.checkpoint.step):
            outcome = self._channel.from_leader(f"published/{key}", outcome, timeout_s)
        if outcome != b"ok":
            raise job.error or CheckpointError(f"checkpoint of step {job.checkpoint.step}: {outcome.decode()}")
        return self._directory.of_step(job.checkpoint.step)

    def _digests(self, job: SaveJob) -> bytes:
        """What this rank wrote, or why it could not."""
        assert job.plan is not None and job.attempt is not None
        if job.error is None:
            try:
                if self._channel.rank != 0:  # it does so when the manifest is there, too
                    storage_ops.sync_directory(job.attempt)
                assert job.objects is not None
                crcs = job.checkpoint.snapshot.extent_crc32c()
                return json_bytes({"extent_crc32c": crcs.tolist(), "objects": vars(job.objects)})
            except Exception as error:  # noqa: BLE001
                job.error = as_checkpoint_error(job.checkpoint, error, self._channel.rank)
        return json_bytes({"error": str(job.error)})

    def _decide(self, job: SaveJob, answers: list[dict[str, Any]]) -> bytes:
        """Rank 0: publish if every rank has written its part, else say who has not."""
        assert job.attempt is not None
        errors = [f"rank {rank}: {answer['error']}" for rank, answer in enumerate(answers) if "error" in answer]
        try:
            if not errors:
                content = self._manifest(job, answers)
                storage_ops.write_synced(job.attempt / manifest.FILE_NAME, content)
                sizes = {path.name: path.stat().st_size for path in job.attempt.iterdir()}
                final = self._directory.publish(job.attempt, job.checkpoint.step, self.damaged)
                self._published = {final / name: size for name, size in sizes.items()}
                self.damaged.discard(job.checkpoint.step)
                return b"ok"
        except Exception as error:  # noqa: BLE001
            job.error = as_checkpoint_error(job.checkpoint, error, 0)
            errors = [str(job.error)]
        with contextlib.suppress(OSError):  # the next writer's lock() clears it
            storage_ops.remove_tree(job.attempt)  # every rank has answered: nobody writes there any more
        return "; ".join(errors).encode()

    def _manifest(self, job: SaveJob, answers: list[dict[str, Any]]) -> bytes:
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

    def prune(self, pinned: Collection[int] = ()) -> None:
        """Rank 0: let go of what retention does not keep, but only while the newest is there, whole.

        Args:
            pinned: steps that somebody still reads.
        """
        try:
            # A damaged step may be newer than all that are whole: it must not stand in for one of them.
            steps = [step for step in self._directory.steps() if step not in self.damaged]
            newest = {path.parent for path in self._published}  # an older run may have left steps with higher numbers
            old = [
                step
                for step in expired(steps, self._config.keep_last, self._config.keep_every)
                if step not in pinned and self._directory.of_step(step) not in newest
            ]
            if old and all(path.stat().st_size == size for path, size in self._published.items()):
                begun_s = time.monotonic()
                self._directory.remove(old)
                if sinks:
                    origin = Origin(str(self._directory.path), self._channel.rank)
                    emit(Pruned(origin, steps=tuple(old), seconds=time.monotonic() - begun_s))
        except Exception:
            logger.exception("retention could not remove old checkpoints of %s", self._directory.path)


def _data_file(rank: int, planned: DataFilePlan, crcs: list[int]) -> manifest.DataFile:
    return manifest.DataFile(
        name=data_file_name(rank),
        size_bytes=planned.size_bytes,
        header_bytes=len(planned.header),
        header_crc32c=_elastates.crc32c(planned.header),
        extent_ends=planned.extent_ends,
        extent_crc32c=np.array(crcs, dtype=np.uint32),
    )
