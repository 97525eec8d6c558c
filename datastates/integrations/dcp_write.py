"""A ``StorageWriter`` of ``torch.distributed.checkpoint`` that writes our checkpoints.

DCP plans (which rank writes which box, replicas removed) and carries the exchanges; this executes:

    coordinator   prepare_global_plan   lock the directory, clear what dead writers left, begin an attempt
    every rank    write_data            data file by the native engine, Python values, both synced; then the directory
    coordinator   finish                manifest of everybody's reports, synced; rename; parent synced; retention

Should any rank fail to write, ``finish`` is never called: nothing is published, and the next writer clears the attempt.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from datastates import manifest, storage_ops
from datastates.config import CheckpointerConfig
from datastates.data_file import DataFilePlan, plan_data_file
from datastates.directory import CheckpointDirectory, data_file_name, objects_file_name
from datastates.dtypes import dtype_name
from datastates.errors import CheckpointError, MutationError, StorageFullError
from datastates.integrations.dcp_objects import encode_item
from datastates.manifest import DataFile, Manifest, ObjectsFile, Shard, TensorInfo
from datastates.plan import Held, Piece
from datastates.retention import prune
from datastates.telling import json_bytes
from oneflow_sbp import Box

import _elastates

NOTES = "dcp"
"""Member of the manifest's ``metadata`` that says what only DCP wants to know."""
_ARENA_BYTES = 256 << 20
"""Here the caller waits for the disk, not for the copy: a larger arena would only cost memory."""
_STEP_PATH = re.compile(r"step-(\d+)")


def locate(path: str | os.PathLike[str]) -> tuple[Path, int | None]:
    """``runs/gpt/step-12`` -> (``runs/gpt``, 12); any other path is a directory of checkpoints, without a step."""
    path = Path(path)
    found = _STEP_PATH.fullmatch(path.name)
    return (path.parent, int(found[1])) if found else (path, None)


class Attempt(NamedTuple):
    """What the coordinator tells every rank, inside the plan."""

    directory: str
    rank: int


class Entry(NamedTuple):
    """A box of a tensor that a rank has written: bytes ``[begin, end)`` of its ``file``-th data file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: int
    begin: int
    end: int
    box: Box


@dataclass(frozen=True)
class Report:
    """What a rank has written: enough for its part of the manifest."""

    files: tuple[DataFile, ...]
    entries: tuple[Entry, ...]
    objects: ObjectsFile
    values: tuple[str, ...]
    """Names of the values in the objects file."""


class DcpWriter(StorageWriter):
    """See :func:`datastates.dcp_writer`. Serves any number of saves, one after the other; can be pickled between them.

    Attributes:
        published: on the coordinator, the path of the last checkpoint that was published.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        step: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.published: Path | None = None
        self._config = CheckpointerConfig.of({"keep_last": None, **options})
        self._notes = dict(metadata or {})
        if NOTES in self._notes:
            raise ValueError(f"metadata has a member {NOTES!r}, which this writer needs for itself; rename it")
        self._step = step
        self._attempt: tuple[Path, int] | None = None
        self.reset(path)
        if step is not None and self._step != step:
            raise ValueError(f"step={step}, but {path} names step {self._step}; give one of them")

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """A new save begins; ``checkpoint_id`` is a path as for the constructor."""
        if checkpoint_id:
            directory, step = locate(checkpoint_id)
            self._directory = CheckpointDirectory(directory)
            self._step = self._step if step is None else step
            self.checkpoint_id = Path(checkpoint_id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is a path."""
        return "://" not in os.fspath(checkpoint_id)

    def storage_meta(self) -> StorageMeta:
        """For planners that ask."""
        return StorageMeta(checkpoint_id=self.checkpoint_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if not kwargs.get("use_collectives", True):
            raise ValueError(
                "use_collectives=False would leave every rank with a checkpoint of its own, and nobody who knows "
                "whether all are complete; leave it out"
            )

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Coordinator: begin an attempt.

        Raises:
            FileExistsError: the step is published already; nothing is ever overwritten.
            DirectoryBusyError: another job writes to the directory.
        """
        storage_ops.make_directories(self._directory.path)
        _lock(self._directory)
        steps = self._directory.steps()
        step = self._step if self._step is not None else max(steps, default=-1) + 1
        if step in steps:
            _unlock(self._directory)
            raise FileExistsError(
                f"step {step} is published already in {self._directory.path} and nothing is ever overwritten; give "
                "another step, or another directory"
            )
        attempt = self._directory.begin(step)
        self._attempt = (attempt, step)
        return [replace(plan, storage_data=Attempt(attempt.name, rank)) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's share; complete and synced when it returns, so the future is done.

        Raises:
            CheckpointError: it could not be written; says why.
            TypeError: a tensor that has no dense bytes.
        """
        attempt, rank = self._find_attempt(plan.storage_data)
        try:
            report = self._write(attempt, rank, plan.items, planner)
            storage_ops.sync_directory(attempt)
        except (_elastates.StatusError, OSError) as error:
            raise _told(error, attempt) from None  # the native error cannot travel to the other ranks
        size_bytes = sum(file.size_bytes for file in report.files)
        future: Future[list[WriteResult]] = Future()
        future.set_result([WriteResult(MetadataIndex(f"rank {rank}"), size_bytes, report)])
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Coordinator, after every rank has written: publish.

        Raises:
            ValueError: the boxes that were written do not make up their tensors; nothing was published.
        """
        assert self._attempt is not None
        attempt, step = self._attempt
        reports = [report.storage_data for (report,) in results]
        try:
            content = manifest.dump(_manifest(step, reports, self._notes, metadata.planner_data))
            storage_ops.write_synced(attempt / manifest.FILE_NAME, content)
            sizes = {path.name: path.stat().st_size for path in attempt.iterdir()}
            self.published = self._directory.publish(attempt, step)
            prune(
                self._directory,
                {self.published / name: size_bytes for name, size_bytes in sizes.items()},
                keep_last=self._config.keep_last,
                keep_every=self._config.keep_every,
            )
        except BaseException:
            if attempt.exists():
                self._directory.discard(attempt)  # every rank has written: nobody writes there any more
            raise
        finally:
            self._attempt = None
            _unlock(self._directory)
        metadata.storage_meta = StorageMeta(checkpoint_id=str(self.published))

    def _find_attempt(self, told: Any) -> tuple[Path, int]:
        """The attempt that the coordinator has begun.

        A planner that caches plans gives out those of an earlier save, with the attempt of that one; but the
        coordinator clears all other attempts before it begins one.
        """
        assert isinstance(told, Attempt)
        path = self._directory.path
        if (path / told.directory).is_dir():
            return path / told.directory, told.rank
        found = list(path.glob(".tmp-step-*")) if path.is_dir() else []
        if len(found) != 1:
            raise CheckpointError(
                f"rank {told.rank} does not see {path / told.directory}, which the coordinator made; give all ranks "
                "one shared directory"
            )
        return found[0], told.rank

    def _write(self, attempt: Path, rank: int, items: Sequence[WriteItem], planner: SavePlanner) -> Report:
        held, tensors = _resolve([item for item in items if item.type != WriteItemType.BYTE_IO], planner)
        files, entries = [], []
        for number, pieces in enumerate(_layers(held)):
            name = data_file_name(rank) if number == 0 else f"rank-{rank:05d}-{number}.safetensors"
            planned = plan_data_file(held, pieces, self._config.chunk_bytes)
            files.append(self._write_file(attempt / name, planned, held, tensors))
            for piece, begin, end in planned.stored:
                kind = held[piece.index]
                entries.append(Entry(kind.name, kind.dtype, kind.shape, number, begin, end, piece.box))
        values = {i.index.fqn: encode_item(planner, i) for i in items if i.type == WriteItemType.BYTE_IO}
        content = json_bytes(values)
        storage_ops.write_synced(attempt / objects_file_name(rank), content)
        objects = ObjectsFile(objects_file_name(rank), len(content), _elastates.crc32c(content))
        return Report(tuple(files), tuple(entries), objects, tuple(values))

    def _write_file(
        self, path: Path, planned: DataFilePlan, held: Sequence[Held], tensors: Sequence[torch.Tensor]
    ) -> DataFile:
        """By the native engine, which copies, checksums and writes at once; returns when the file is synced."""
        devices = sorted({t.get_device() for t in tensors if t.is_cuda})
        streams = [(device, torch.cuda.current_stream(device).cuda_stream) for device in devices]
        groups = np.ones(len(tensors), dtype=np.uint32)
        refs = _elastates.TensorSet(tensors, groups).hold([], 0, 0, streams)
        engine = self._config.make_engine(min(planned.size_bytes, _ARENA_BYTES))
        try:
            snapshot = engine.submit(**planned.submission(path, refs), num_groups=2)
            snapshot.wait_written()
            crcs = snapshot.extent_crc32c()
        except _elastates.StatusError as error:
            raise _mutated(error, held) or error from None
        finally:
            engine.close()
        return planned.written(path.name, crcs)


def _resolve(items: Sequence[WriteItem], planner: SavePlanner) -> tuple[list[Held], list[torch.Tensor]]:
    """What the planner gives for its tensor items: contiguous tensors, and the boxes they are."""
    held, tensors = [], []
    for item in items:
        assert item.tensor_data is not None
        name, shape = item.index.fqn, tuple(item.tensor_data.size)
        box = Box(tuple(item.tensor_data.chunk.offsets), tuple(item.tensor_data.chunk.sizes))
        if not box.numel and 0 not in shape:
            continue  # a rank's empty share of a tensor that others hold
        box = box if box.numel else Box.whole(shape)
        tensor = planner.resolve_data(item)
        assert isinstance(tensor, torch.Tensor)
        tensor = _dense(name, tensor.detach())
        if tensor.numel() != box.numel:
            raise ValueError(f"{name}: the planner gives {list(tensor.shape)} for the box {box}")
        held.append(Held(name, dtype_name(tensor.dtype), tensor.element_size(), shape, box, 0))
        tensors.append(tensor)
    return held, tensors


def _dense(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` as memory that can be written as it lies."""
    if type(tensor) is not torch.Tensor or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise TypeError(
            f"{name} is a {type(tensor).__name__} with layout {tensor.layout} on {tensor.device}; only dense tensors "
            "can be stored: convert it before the save"
        )
    tensor = tensor.resolve_conj().resolve_neg()
    if not (tensor.is_cpu or tensor.is_cuda):
        tensor = tensor.cpu()
    return tensor.contiguous()


def _layers(held: Sequence[Held]) -> list[list[Piece]]:
    """One list of pieces per data file: a safetensors file holds one box of a tensor, a ``ShardedTensor`` may have
    several on a rank."""
    layers: list[list[Piece]] = [[]]
    seen: dict[str, int] = {}
    for index, item in enumerate(held):
        number = seen.get(item.name, 0)
        seen[item.name] = number + 1
        if number == len(layers):
            layers.append([])
        layers[number].append(Piece(index, item.name, item.box))
    return layers


def _manifest(step: int, reports: Sequence[Report], notes: Mapping[str, Any], paths: Any) -> Manifest:
    """The whole, after a check that it is one."""
    files: list[DataFile] = []
    kinds: dict[str, Entry] = {}
    shards: dict[str, list[Shard]] = {}
    for report in reports:
        for entry in report.entries:
            kinds.setdefault(entry.name, entry)
            place = Shard(len(files) + entry.file, entry.begin, entry.end, entry.box)
            shards.setdefault(entry.name, []).append(place)
        files += report.files
    for name, found in shards.items():
        manifest.check_tiling(name, Box.whole(kinds[name].shape), found)
    known: dict[str, Any] = {"objects": {name: rank for rank, report in enumerate(reports) for name in report.values}}
    if paths is not None:
        known["paths"] = {name: list(path) for name, path in paths.items()}
    return Manifest(
        step=step,
        num_ranks=len(reports),
        tensors={name: TensorInfo(kinds[name].dtype, kinds[name].shape, tuple(s)) for name, s in shards.items()},
        files=tuple(files),
        objects=tuple(report.objects for report in reports),
        metadata={**notes, NOTES: known},
        created_unix_s=time.time(),
    )


_holders: dict[Path, tuple[threading.Thread, CheckpointDirectory]] = {}
_holders_lock = threading.Lock()


def _lock(directory: CheckpointDirectory) -> None:
    """Take the directory's lock for this thread.

    DCP does not tell the coordinator that another rank has failed, so a lock of this process may be left over from a
    save that has ended: one of this very thread, or of a thread that has ended, as those of ``async_save`` do.
    """
    path = directory.path.absolute()
    with _holders_lock:
        thread, left = _holders.get(path, (threading.current_thread(), directory))
        if thread not in (threading.current_thread(), threading.main_thread()):
            thread.join(1.0)  # its save may have ended a moment ago
        if thread is threading.current_thread() or not thread.is_alive():
            left.unlock()
        directory.lock()
        _holders[path] = (threading.current_thread(), directory)


def _unlock(directory: CheckpointDirectory) -> None:
    with _holders_lock:
        _holders.pop(directory.path.absolute(), None)
        directory.unlock()


def _mutated(error: Exception, held: Sequence[Held]) -> MutationError | None:
    if error.args[0] != "mutated":
        return None
    indices = error.args[1].rpartition(": ")[2]  # behind the name of the actor that found out
    names = [held[int(index)].name for index in indices.split(",")]
    return MutationError(f"{', '.join(names[:8])} changed while it was written; stage the state before the save")


def _told(error: Exception, attempt: Path) -> CheckpointError:
    """What storage said, the native engine's or the file operations' error, as an exception that can travel."""
    if isinstance(error, OSError):
        full, text = error.errno in (errno.ENOSPC, errno.EDQUOT), str(error.strerror)
    else:
        full, text = error.args[0] in ("no_space", "quota_exceeded"), f"{error.args[1]} ({error.args[0]})"
    return (StorageFullError if full else CheckpointError)(f"{attempt}: {text}")
