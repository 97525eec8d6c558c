"""A ``StorageReader`` of ``torch.distributed.checkpoint`` for our checkpoints, whoever wrote them.

Every byte is verified on its way. A step that was named is read or refused; of a directory the newest whole checkpoint
is read, and if some rank finds it damaged, all ranks fall back together. DCP has no exchange for that in the middle of
a read, so the coordinator opens a store for it and says where in the plan.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from datastates.config import CheckpointerConfig
from datastates.coordination import Channel
from datastates.directory import CheckpointDirectory, parse_objects, read_manifest, read_objects
from datastates.dtypes import dtype_of
from datastates.errors import DamagedCheckpointError, RestoreError
from datastates.integrations.dcp_objects import as_torch_save
from datastates.integrations.dcp_write import NOTES, locate
from datastates.loading import Target, load, plan_load
from datastates.manifest import Manifest, TensorInfo
from datastates.restore import Vote
from oneflow_sbp import Box

logger = logging.getLogger("datastates")
Json = Any


class Agreed(NamedTuple):
    """What the coordinator tells every rank, inside the plan."""

    step: int
    rank: int
    num_ranks: int
    address: tuple[str, int] | None
    """Of the store over which ranks agree to fall back; ``None`` where none is needed."""


@dataclass(frozen=True)
class Fill:
    """One item of the plan: the planner's tensor, and where its values are."""

    item: ReadItem
    tensor: torch.Tensor
    box: Box
    """Of the global tensor."""


class DcpReader(StorageReader):
    """See :func:`datastates.dcp_reader`. Serves any number of loads, one after the other."""

    def __init__(self, path: str | os.PathLike[str], *, allow_pickle: bool = False, **options: Any) -> None:
        super().__init__()
        self._config = CheckpointerConfig.of(options)
        self._allow_pickle = allow_pickle
        self._server: dist.Store | None = None
        self.reset(path)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """A new load begins; ``checkpoint_id`` is a path as for the constructor."""
        if checkpoint_id:
            directory, self._named_step = locate(checkpoint_id)
            self._directory = CheckpointDirectory(directory)
            self.checkpoint_id = Path(checkpoint_id)
        self._checkpoint: SavedForDcp | None = None

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether there is a checkpoint of ours."""
        directory, step = locate(checkpoint_id)
        steps = CheckpointDirectory(directory).steps()
        return bool(steps) if step is None else step in steps

    # No **kwargs: DCP would take them for a sign that ranks may have metadata of their own.
    def read_metadata(self) -> Metadata:
        """Metadata of the checkpoint that is going to be read.

        Raises:
            FileNotFoundError: there is none.
            DamagedCheckpointError: the step that was named is not whole.
            RestoreError: none of the directory is.
        """
        self._checkpoint = self._newest() if self._named_step is None else self._open(self._named_step)
        return self._checkpoint.metadata()

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        assert self._checkpoint is not None

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        assert self._checkpoint is not None
        return replace(plan, storage_data=self._checkpoint.manifest.step)

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Coordinator: one step for all, the oldest if a new one was published while they looked."""
        step = min(plan.storage_data for plan in plans)
        address = self._serve() if len(plans) > 1 and self._named_step is None else None
        return [replace(p, storage_data=Agreed(step, rank, len(plans), address)) for rank, p in enumerate(plans)]

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the planner's tensors and values; done when it returns.

        Raises:
            DamagedCheckpointError: the step that was named is damaged; names file, range and tensors.
            RestoreError: every checkpoint of the directory is; tensors may hold damaged bytes.
            ValueError: an older checkpoint does not have what the newest has.
        """
        fills = [self._fill(item, planner) for item in plan.items if item.type == LoadItemType.TENSOR]
        values = [item for item in plan.items if item.type == LoadItemType.BYTE_IO]

        def read(saved: SavedForDcp) -> list[Any]:
            saved.read(fills, self._config)
            return [as_torch_save(saved.value(item.storage_index.fqn), self._allow_pickle) for item in values]

        for item, stream in zip(values, self._read_whole(plan.storage_data, read), strict=True):
            planner.load_bytes(item, stream)
        for fill in fills:
            planner.commit_tensor(fill.item, fill.tensor)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _read_whole(self, agreed: Agreed, read: Callable[[SavedForDcp], list[Any]]) -> list[Any]:
        """``read`` of the agreed step, or of an older one that is whole if none was named."""
        if self._named_step is not None:
            return read(self._open(agreed.step))
        channel = self._channel(agreed)
        vote = Vote(channel, self._config.commit_timeout_s)
        steps = json.loads(vote.leader(json.dumps(self._directory.steps()).encode()))
        damaged = []
        try:
            for step in reversed([step for step in steps if step <= agreed.step]):
                try:
                    return vote.all_agree(lambda step=step: read(self._open(step)))  # type: ignore[misc]
                except DamagedCheckpointError as error:
                    logger.warning("step %d is damaged, falling back to an older checkpoint: %s", step, error)
                    damaged.append(f"step {step}: {error}")
        finally:
            channel.leave(self._config.commit_timeout_s)
            self._server = None
        raise RestoreError(f"no checkpoint of {self._directory.path} can be loaded: {'; '.join(damaged)}")

    def _serve(self) -> tuple[str, int]:
        host = os.environ.get("MASTER_ADDR") if dist.is_initialized() and dist.get_rank() == 0 else None
        host = host or socket.gethostname()
        self._server = dist.TCPStore(host, 0, None, True, self._timeout, wait_for_workers=False)
        return host, self._server.port

    def _channel(self, agreed: Agreed) -> Channel:
        if agreed.address is None:
            return Channel(None, 0, 1)
        store = dist.TCPStore(*agreed.address, None, False, self._timeout, wait_for_workers=False)
        return Channel(store, agreed.rank, agreed.num_ranks)

    @property
    def _timeout(self) -> datetime.timedelta:
        return datetime.timedelta(seconds=self._config.commit_timeout_s)

    def _open(self, step: int) -> SavedForDcp:
        if self._checkpoint is not None and self._checkpoint.manifest.step == step:
            return self._checkpoint
        path = self._directory.of_step(step)
        if not path.is_dir():
            raise FileNotFoundError(f"there is no checkpoint {path}")
        return SavedForDcp(path, read_manifest(path))

    def _newest(self) -> SavedForDcp:
        steps, damaged = self._directory.steps(), []
        for step in reversed(steps):
            try:
                return self._open(step)
            except DamagedCheckpointError as error:
                logger.warning("passed over: %s", error)
                damaged.append(str(error))
        if damaged:
            raise RestoreError(f"no checkpoint of {self._directory.path} is whole: {'; '.join(damaged)}")
        raise FileNotFoundError(f"there is no checkpoint in {self._directory.path}")

    def _fill(self, item: ReadItem, planner: LoadPlanner) -> Fill:
        chunk = item.storage_index.offset or torch.Size([0] * len(item.lengths))
        offsets = tuple(a + b for a, b in zip(chunk, item.storage_offsets, strict=True))
        return Fill(item, planner.resolve_tensor(item).detach(), Box(offsets, tuple(item.lengths)))


class SavedForDcp:
    """One checkpoint as DCP names its content."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        notes = manifest.metadata.get(NOTES)  # anything, if another writer put it there
        self._notes = notes if isinstance(notes, dict) and isinstance(notes.get("objects"), dict) else None
        self._objects: dict[int, dict[str, Json]] = {}

    def metadata(self) -> Metadata:
        """What DCP's planners ask for."""
        found: dict[str, Any] = {name: _tensor_metadata(info) for name, info in self.manifest.tensors.items()}
        for alias, name in self.manifest.aliases.items():
            found.setdefault(alias, found[name])
        found |= {name: BytesStorageMetadata() for name in self._value_ranks() if name not in found}
        paths = (self._notes or {}).get("paths", {})
        return Metadata(
            state_dict_metadata=found,
            planner_data={name: tuple(paths.get(name, (name,))) for name in found},
            storage_meta=StorageMeta(checkpoint_id=str(self.path)),
        )

    def read(self, fills: list[Fill], config: CheckpointerConfig) -> None:
        """Fill the tensors.

        Raises:
            DamagedCheckpointError: bytes are not what was written.
            ValueError: the checkpoint does not have what is asked for.
        """
        targets, converted = [], []
        for fill in fills:
            name = self.manifest.aliases.get(fill.item.storage_index.fqn, fill.item.storage_index.fqn)
            info = self.manifest.tensors.get(name)
            if info is None or not fill.box.inside(info.shape):
                raise ValueError(f"{self.path} has no {name} with the part {fill.box}")
            tensor = fill.tensor
            if tensor.dtype != dtype_of(info.dtype):  # as stock DCP does: copy_ converts
                tensor = torch.empty(fill.box.sizes, dtype=dtype_of(info.dtype))
                converted.append((fill.tensor, tensor))
            targets.append(Target(name, tensor, fill.box))
        plan = plan_load(self.manifest.tensors, targets)
        load(self.path, self.manifest, plan, threads=config.read_threads, direct_io=config.direct_io)
        for tensor, stored in converted:
            tensor.copy_(stored)

    def value(self, name: str) -> Json:
        """The stored form of a value that is no tensor.

        Raises:
            ValueError: the checkpoint has none of this name.
        """
        ranks = self._value_ranks()
        if name not in ranks:
            raise ValueError(f"{self.path} has no {name}")
        return self._of_rank(ranks[name])[name]

    def _value_ranks(self) -> Mapping[str, int]:
        """Name of every value -> the rank whose objects file has it."""
        if self._notes is not None:
            known: Mapping[str, int] = self._notes["objects"]
            return known
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        rank %= self.manifest.num_ranks
        return dict.fromkeys(self._of_rank(rank), rank)

    def _of_rank(self, rank: int) -> dict[str, Json]:
        if rank not in self._objects:
            if rank not in range(self.manifest.num_ranks):
                raise DamagedCheckpointError(f"{self.path}: values are said to be with rank {rank}, which did not save")
            objects = self.manifest.objects[rank]
            stored = parse_objects(read_objects(self.path, objects), str(self.path / objects.name))
            self._objects[rank] = stored if self._notes is not None else dict(_flat(stored))
        return self._objects[rank]


def _flat(value: Json, name: str = "") -> Iterator[tuple[str, Json]]:
    """The sections that a ``Checkpointer`` wrote, under the names that DCP would flatten them to; without tensors."""
    dot = f"{name}." if name else ""
    if isinstance(value, dict) and "$" not in value:
        for key, item in value.items():
            yield from _flat(item, f"{dot}{key}")
    elif isinstance(value, list) and not all(map(_is_leaf, value)):
        for index, item in enumerate(value):
            yield from _flat(item, f"{dot}{index}")
    elif not (isinstance(value, dict) and value["$"] == "tensor"):
        yield name, value


def _is_leaf(value: Json) -> bool:
    """Whether DCP leaves a list of such values whole: of anything but mappings and tensors, however deep."""
    if isinstance(value, dict):
        return "$" in value and not value["$"].endswith("tensor")
    return not isinstance(value, list) or all(map(_is_leaf, value))


def _tensor_metadata(info: TensorInfo) -> TensorStorageMetadata:
    chunks = [ChunkStorageMetadata(torch.Size(s.box.offsets), torch.Size(s.box.sizes)) for s in info.shards]
    return TensorStorageMetadata(TensorProperties(dtype=dtype_of(info.dtype)), torch.Size(info.shape), chunks)
