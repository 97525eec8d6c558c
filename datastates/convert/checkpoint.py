"""Writing a checkpoint of ours from any source, in one process and in bounded memory."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datastates import manifest, storage_ops
from datastates.agreement import make_save_plan
from datastates.convert.source import Progress, raw_bytes
from datastates.convert.tree import Incoming
from datastates.data_file import DataFilePlan
from datastates.directory import CheckpointDirectory, data_file_name, objects_file_name
from datastates.dtypes import dtype_name
from datastates.plan import Held
from oneflow_sbp import Box

import _elastates

CHUNK_BYTES = 8 << 20
"""No extent is larger, as in checkpoints that training takes."""


def write_checkpoint(
    incoming: Incoming,
    path: Path,
    step: int,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Publish ``incoming`` as the checkpoint of ``step`` in the directory of checkpoints ``path``; returns where it is.

    Raises:
        DirectoryBusyError: a job is writing there.
        FileExistsError: the step is there already.
    """
    path.mkdir(parents=True, exist_ok=True)
    directory = CheckpointDirectory(path)
    directory.lock()
    try:
        if directory.of_step(step).exists():
            raise FileExistsError(f"{directory.of_step(step)} exists already; choose another step or directory")
        attempt = directory.begin(step)
        try:
            _write_files(attempt, incoming, step, dict(metadata or {}), progress)
            return directory.publish(attempt, step)
        except BaseException:
            directory.discard(attempt)
            raise
    finally:
        directory.unlock()


def _write_files(
    attempt: Path, incoming: Incoming, step: int, metadata: dict[str, Any], progress: Progress | None
) -> None:
    held = [
        Held(name, dtype_name(entry.dtype), entry.dtype.itemsize, entry.shape, Box.whole(entry.shape), 0)
        for name, entry in incoming.source.entries.items()
    ]
    plan = make_save_plan([held], incoming.aliases, [frozenset()], CHUNK_BYTES)
    (file,) = plan.files
    data = storage_ops.PieceFile(attempt / data_file_name(0))
    crcs = _write_data(data, incoming, file, progress)
    storage_ops.sync_file(data)
    python = json.dumps(dict(incoming.python), separators=(",", ":")).encode()
    storage_ops.write_synced(attempt / objects_file_name(0), python)
    content = manifest.Manifest(
        step=step,
        num_ranks=1,
        tensors=plan.tensors,
        files=(file.written(data_file_name(0), crcs),),
        objects=(manifest.ObjectsFile(objects_file_name(0), len(python), _elastates.crc32c(python)),),
        aliases=plan.aliases,
        metadata=metadata,
        created_unix_s=time.time(),
    )
    storage_ops.write_synced(attempt / manifest.FILE_NAME, manifest.dump(content, plan.tensors_text))


def _write_data(
    data: storage_ops.PieceFile, incoming: Incoming, file: DataFilePlan, progress: Progress | None
) -> list[int]:
    """The data file; returns the checksum of every extent."""
    data.write(file.header, 0)
    extents = _Extents(data, len(file.header), file.extent_ends.tolist())
    total = file.size_bytes
    for _, piece in incoming.source.stream([stored.piece.name for stored in file.stored]):
        extents.write(raw_bytes(piece))
        if progress is not None:
            progress(extents.at, total)
    if extents.at != total:
        raise ValueError(f"the source gave {extents.at - len(file.header)} of {total - len(file.header)} bytes")
    return extents.crcs


class _Extents:
    """Cuts a stream of bytes into extents, checksums and writes each."""

    def __init__(self, file: storage_ops.PieceFile, begin: int, ends: list[int]) -> None:
        self.at = begin
        self.crcs: list[int] = []
        self._file = file
        self._ends = iter(ends)
        self._end = next(self._ends, begin)
        self._extent = bytearray()

    def write(self, data: memoryview) -> None:
        while data:
            part = data[: self._end - self.at]
            data = data[len(part) :]
            self._extent += part
            self.at += len(part)
            if self.at == self._end:
                self.crcs.append(_elastates.crc32c(self._extent))
                self._file.write(self._extent, self.at - len(self._extent))
                self._extent.clear()
                self._end = next(self._ends, self._end)
