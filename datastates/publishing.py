"""Publishing: the last lane's work, which makes what all ranks have written one visible checkpoint.

``docs/format.md`` lists the sequence and says why it is in that order.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from datastates import manifest, storage_ops
from datastates.config import CheckpointerConfig
from datastates.coordination import Channel
from datastates.data_file import DataFilePlan
from datastates.delta import Base, DeltaBases, refer, written_bytes
from datastates.directory import CheckpointDirectory, data_file_name, delta_file_name
from datastates.errors import CheckpointError
from datastates.retention import prune
from datastates.save_job import SaveJob, as_checkpoint_error
from datastates.sight.spans import span
from datastates.telling import json_bytes


class Volume(NamedTuple):
    """The data files of all ranks of one checkpoint."""

    size_bytes: int
    written_bytes: int
    """Less where deltas have holes."""
    is_delta: bool


NOTHING = Volume(0, 0, False)
"""What a failed checkpoint published."""


class Publisher:
    """Used by the commit lane alone."""

    def __init__(
        self, directory: CheckpointDirectory, config: CheckpointerConfig, channel: Channel, bases: DeltaBases
    ) -> None:
        self._directory = directory
        self._config = config
        self._channel = channel
        self._bases = bases
        self._published: dict[Path, int] = {}
        self._told: str | None = None  # key of the last outcome
        self.damaged: set[int] = set()
        """Steps that a restore found damaged: their directories make way when the step is taken again."""

    def publish(self, job: SaveJob) -> tuple[Path, Volume]:
        """Collective: publish if every rank has written its part; returns the final path, and what lies there.

        Raises:
            CheckpointError: some rank failed or did not answer; nothing was published.
        """
        assert job.plan is not None and job.attempt is not None
        timeout_s = self._config.commit_timeout_s
        key = f"{job.checkpoint.ordinal}"
        with span("gather digests", job.checkpoint.step):
            mine = self._digests(job)
            answers = self._channel.gather(f"written/{key}", json_bytes(mine), timeout_s)
        if self._told is not None:
            self._channel.forget(self._told)  # who has come this far has read it
        self._told = f"published/{key}"
        outcome = b""
        if self._channel.rank == 0:
            with span("manifest and rename", job.checkpoint.step):
                outcome = self._decide(job, [json.loads(answer) for answer in answers])
        with span("hear the outcome", job.checkpoint.step):
            outcome = self._channel.from_leader(f"published/{key}", outcome, timeout_s)
        told = json.loads(outcome)
        if "failed" in told:
            raise job.error or CheckpointError(f"checkpoint of step {job.checkpoint.step}: {told['failed']}")
        volume = Volume(**told["published"])
        if self._config.full_every is not None:
            self._remember(job, mine, volume)
        return self._directory.of_step(job.checkpoint.step), volume

    def _digests(self, job: SaveJob) -> dict[str, Any]:
        """What this rank wrote, or why it could not."""
        assert job.plan is not None and job.attempt is not None
        if job.error is None:
            try:
                referred = self._link_sources(job)
                if self._channel.rank != 0:  # it does so when the manifest is there, too
                    storage_ops.sync_directory(job.attempt)
                assert job.objects is not None
                crcs = job.checkpoint.snapshot.extent_crc32c()
                return {"extent_crc32c": crcs.tolist(), "objects": vars(job.objects), **referred}
            except Exception as error:  # noqa: BLE001
                job.error = as_checkpoint_error(job.checkpoint, error, self._channel.rank)
        return {"error": str(job.error)}

    def _link_sources(self, job: SaveJob) -> dict[str, Any]:
        """Give the earlier files that hold this rank's unchanged extents a name in the attempt's directory."""
        assert job.plan is not None and job.attempt is not None
        planned = job.plan.files[self._channel.rank]
        changed = job.checkpoint.snapshot.extent_changed()
        if job.base is None or changed.all():
            return {"sources": [], "extent_sources": [], "written_bytes": planned.size_bytes}
        referral = refer(job.base, changed)
        try:
            for name, held in referral.links.items():
                storage_ops.link(held, job.attempt / name)
        except OSError:
            self._bases.clear()  # the next one is full
            raise
        return {
            "sources": referral.sources,
            "extent_sources": referral.extent_sources.tolist(),
            "written_bytes": written_bytes(len(planned.header), planned.extent_ends, changed),
        }

    def _decide(self, job: SaveJob, answers: list[dict[str, Any]]) -> bytes:
        """Rank 0: publish if every rank has written its part, else say who has not."""
        assert job.attempt is not None
        errors = [f"rank {rank}: {answer['error']}" for rank, answer in enumerate(answers) if "error" in answer]
        try:
            if not errors:
                volume = self._volume(job, answers)
                if job.base is not None and not volume.is_delta:
                    self._name_as_full(job.attempt)
                content = self._manifest(job, answers, volume.is_delta)
                storage_ops.write_synced(job.attempt / manifest.FILE_NAME, content)
                sizes = {path.name: path.stat().st_size for path in job.attempt.iterdir()}
                final = self._directory.publish(job.attempt, job.checkpoint.step, self.damaged)
                self._published = {final / name: size for name, size in sizes.items()}
                self.damaged.discard(job.checkpoint.step)
                return json_bytes({"published": volume._asdict()})
        except Exception as error:  # noqa: BLE001
            job.error = as_checkpoint_error(job.checkpoint, error, 0)
            errors = [str(job.error)]
        self._directory.discard(job.attempt)  # every rank has answered: nobody writes there any more
        return json_bytes({"failed": "; ".join(errors)})

    def _volume(self, job: SaveJob, answers: list[dict[str, Any]]) -> Volume:
        assert job.plan is not None
        return Volume(
            size_bytes=job.plan.size_bytes,
            written_bytes=sum(answer["written_bytes"] for answer in answers),
            is_delta=any(answer["sources"] for answer in answers),
        )

    def _name_as_full(self, attempt: Path) -> None:
        """A delta in which everything had changed, on all ranks, is a full checkpoint."""
        for rank in range(self._channel.num_ranks):
            storage_ops.rename(attempt / delta_file_name(rank), attempt / data_file_name(rank))

    def _remember(self, job: SaveJob, mine: dict[str, Any], volume: Volume) -> None:
        """What this rank has just published can be the base of later checkpoints."""
        assert job.plan is not None
        rank, step = self._channel.rank, job.checkpoint.step
        older = job.base if volume.is_delta else None
        self._bases.add(
            Base(
                step=step,
                rank=rank,
                path=self._directory.of_step(step),
                layout=job.plan.layout,
                file=_data_file(rank, job.plan.files[rank], mine, volume.is_delta),
                digests=job.checkpoint.snapshot.extent_digests(),
                full_ordinal=older.full_ordinal if older else job.checkpoint.ordinal,
                chain_bytes=(older.chain_bytes if older else 0) + volume.written_bytes,
                size_bytes=volume.size_bytes,
            )
        )

    def _manifest(self, job: SaveJob, answers: list[dict[str, Any]], is_delta: bool) -> bytes:
        assert job.plan is not None
        files = [
            _data_file(rank, planned, answer, is_delta)
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
        prune(
            self._directory,
            self._published,
            keep_last=self._config.keep_last,
            keep_every=self._config.keep_every,
            damaged=self.damaged,
            let_go=lambda steps: self._bases.let_go([step for step in steps if step not in pinned]),
        )


def _data_file(rank: int, planned: DataFilePlan, answer: dict[str, Any], is_delta: bool) -> manifest.DataFile:
    name = delta_file_name(rank) if is_delta else data_file_name(rank)
    return planned.written(name, answer["extent_crc32c"], answer["sources"], answer["extent_sources"])
