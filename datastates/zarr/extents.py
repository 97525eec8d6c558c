"""Boxes of tensors from a cache of verified extents.

An extent is the smallest range of a file that has a checksum, so reading one row verifiably means reading its extent.
Chunks of a Zarr array are cut by rows and not by extents: neighbours share one. The cache keeps the extents used last,
within a bound, so that reading an array chunk by chunk reads and verifies every byte once.
"""

from __future__ import annotations

import collections
import threading
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch

from datastates.dtypes import dtype_of
from datastates.loading import LoadPlan, Run, Target, load, plan_load
from datastates.manifest import Manifest
from oneflow_sbp import Box

Extent = tuple[int, int]
"""(data file, number of the extent in it)."""


class VerifiedBoxes:
    """Reads boxes of a checkpoint's tensors. Thread-safe; an extent that several threads want is read once."""

    def __init__(self, path: Path, manifest: Manifest, cache_bytes: int) -> None:
        self._path = path
        self._manifest = manifest
        self._cache_bytes = cache_bytes
        self._bounds = [
            np.concatenate([np.array([f.header_bytes], dtype=np.uint64), f.extent_ends]).astype(np.int64)
            for f in manifest.files
        ]
        self._lock = threading.Lock()
        self._cached: collections.OrderedDict[Extent, Future[torch.Tensor]] = collections.OrderedDict()
        self._bytes = 0  # of cached extents, those being read included; guarded by _lock, as the dict
        self.bytes_read = 0
        """Sizes of the extents read since construction, added up; guarded by _lock."""

    def read(self, name: str, box: Box) -> torch.Tensor:
        """The elements of ``box``: a new contiguous host tensor.

        Raises:
            DamagedCheckpointError: an extent is not what was written; names file, range and tensors.
        """
        out = torch.empty(box.sizes, dtype=dtype_of(self._manifest.tensors[name].dtype))
        plan = plan_load(self._manifest.tensors, [Target(name, out, box)], in_rows=False)
        for run in plan.runs:
            self._fill(run)
        for patch in plan.patches:
            piece = patch.buffer[patch.part.relative_to(patch.hull)]
            out[patch.part.relative_to(box)].copy_(piece)
        return out

    def _fill(self, run: Run) -> None:
        goal = run.tensor.reshape(-1).view(torch.uint8)[run.offset : run.offset + run.end - run.begin]
        bounds = self._bounds[run.file]
        first = int(np.searchsorted(bounds, run.begin, side="right")) - 1
        for number in range(first, len(bounds) - 1):
            begin, end = int(bounds[number]), int(bounds[number + 1])
            if begin >= run.end:
                break
            low, high = max(begin, run.begin), min(end, run.end)
            goal[low - run.begin : high - run.begin] = self._extent((run.file, number))[low - begin : high - begin]

    def _extent(self, key: Extent) -> torch.Tensor:
        with self._lock:
            future = self._cached.get(key)
            if future is not None:
                self._cached.move_to_end(key)
            mine = future is None
            if future is None:
                future = self._cached[key] = Future()
                self._bytes += self._size(key)
        if mine:
            self._read_extent(key, future)
        return future.result()

    def _read_extent(self, key: Extent, future: Future[torch.Tensor]) -> None:
        file, number = key
        size = self._size(key)
        try:
            begin = int(self._bounds[file][number])
            buffer = torch.empty(size, dtype=torch.uint8)
            plan = LoadPlan([Run(file, begin, begin + size, buffer, 0)], [])
            load(self._path, self._manifest, plan, threads=1, direct_io=False)
        except BaseException as error:  # noqa: BLE001  (whoever asked for it raises it)
            with self._lock:  # the next one who asks tries again
                del self._cached[key]
                self._bytes -= size
            future.set_exception(error)
            return
        future.set_result(buffer)
        with self._lock:
            self.bytes_read += size
            self._evict()

    def _evict(self) -> None:
        """REQUIRES: the lock is held."""
        while self._bytes > self._cache_bytes and self._cached:
            key, oldest = next(iter(self._cached.items()))
            if not oldest.done():
                return
            del self._cached[key]
            self._bytes -= self._size(key)

    def _size(self, key: Extent) -> int:
        file, number = key
        return int(self._bounds[file][number + 1] - self._bounds[file][number])
