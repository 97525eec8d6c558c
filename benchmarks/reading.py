"""Reading what others wrote, ours beside stock DCP: four ranks' checkpoint on two ranks, and one tensor of many.

Both are cold, paired and interleaved. Resharding runs in real processes: four save tensors cut by rows, as FSDP2 cuts
them, with each library, then two load them, again and again in random order, cut by rows and cut by columns. Every load
is compared with the values that every element must have.
"""

from __future__ import annotations

import gc
import json
import os
import random
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # after installed packages: ours may be one of them

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

import datastates
from benchmarks.files import evict_tree, fsync_tree
from benchmarks.progress import quiet_libraries, say
from benchmarks.protocol import quiesce
from oneflow_sbp import local_box

SAVING_RANKS, LOADING_RANKS = 4, 2
ROWS, COLUMNS = 4096, 2048
"""Of one tensor of the resharded state: 33.6 MB in fp32."""
MANY_ELEMENTS = 16_384
"""Of one tensor of many: 64 KB."""
OURS, DCP = "ours", "dcp"


@dataclass(frozen=True, kw_only=True)
class ReadingSample:
    """Both libraries, once, one right after the other; seconds."""

    ours_s: float
    dcp_s: float
    correct: bool
    """Whether ours gave every bit. DCP's errors end the run."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """All samples of both measurements."""

    reshard: list[ReadingSample]
    """By rows, as FSDP2 does."""
    reshard_columns: list[ReadingSample]
    """By columns: every rank needs a part of every stored box, and no part is one run of bytes."""
    reshard_bytes: int
    """Of all tensors, so over both loading ranks."""
    one_of_many: list[ReadingSample]
    many_count: int


def measure(root: Path, *, size_bytes: int, many_count: int, repeats: int, seed: int) -> Reading:
    """Both measurements; leaves files below ``root`` only."""
    num_tensors = max(1, size_bytes // (ROWS * COLUMNS * 4))
    root.mkdir(parents=True, exist_ok=True)
    _run_ranks("save", SAVING_RANKS, root, num_tensors, repeats, seed)
    _run_ranks("load", LOADING_RANKS, root, num_tensors, repeats, seed)
    rows, columns = (
        [ReadingSample(**sample) for sample in samples] for samples in json.loads((root / "samples.json").read_text())
    )
    return Reading(
        reshard=rows,
        reshard_columns=columns,
        reshard_bytes=num_tensors * ROWS * COLUMNS * 4,
        one_of_many=one_of_many(root / "many", many_count, repeats, seed),
        many_count=many_count,
    )


def one_of_many(root: Path, count: int, repeats: int, seed: int) -> list[ReadingSample]:
    """Open a checkpoint of many tensors and read one, from a cold page cache."""
    torch.manual_seed(seed)
    tensors = {f"tensor.{index}": torch.randn(MANY_ELEMENTS) for index in range(count)}
    with datastates.Checkpointer(root / OURS) as checkpoints:
        path = checkpoints.checkpoint(0, {"model": tensors}).durable.result()
    with _alone():
        dcp.save({"model": tensors}, checkpoint_id=root / DCP, no_dist=True)
    fsync_tree(root)
    order = random.Random(seed)
    samples = []
    for repeat in range(repeats + 1):
        name = f"tensor.{order.randrange(count)}"
        found = {DCP: torch.zeros(MANY_ELEMENTS)}

        def read_ours(name: str = name, found: dict[str, torch.Tensor] = found) -> None:
            found[OURS] = datastates.open_checkpoint(path).read(f"model.{name}")

        def read_dcp(name: str = name, found: dict[str, torch.Tensor] = found) -> None:
            with _alone():
                dcp.load({"model": {name: found[DCP]}}, checkpoint_id=root / DCP, no_dist=True)

        loads = [(OURS, read_ours), (DCP, read_dcp)]
        order.shuffle(loads)
        seconds = {library: _timed(load, root, quiesce) for library, load in loads}
        if not torch.equal(found[DCP], tensors[name]):
            raise RuntimeError(f"DCP loaded other values of {name} than it saved")
        if repeat:  # the first one imports, and opens what stays open
            correct = torch.equal(found[OURS], tensors[name])
            samples.append(ReadingSample(ours_s=seconds[OURS], dcp_s=seconds[DCP], correct=correct))
            say(f"one     ours {seconds[OURS] * 1e3:6.1f}  dcp {seconds[DCP] * 1e3:6.1f} ms")
    return samples


def _timed(load: Callable[[], object], root: Path, settle: Callable[[], None]) -> float:
    """Seconds that ``load`` takes with nothing of ``root`` in the page cache.

    The cyclic collector is off: one full collection of this process takes longer than either library needs for one
    tensor, and by its own rules it falls into one run and not into the next.
    """
    settle()
    evict_tree(root)
    settle()
    gc.disable()
    try:
        start_s = time.perf_counter()
        load()
        return time.perf_counter() - start_s
    finally:
        gc.enable()


class _alone(warnings.catch_warnings):
    """DCP warns that there is no process group; here there is none on purpose."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)


# ---- what every rank of the resharding job does ----


def _run_ranks(what: str, num_ranks: int, root: Path, num_tensors: int, repeats: int, seed: int) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    words = [what, str(root), str(num_tensors), str(repeats), str(seed)]
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_ranks)}
    job |= {"LOCAL_WORLD_SIZE": str(num_ranks), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, __file__, *words], env={**os.environ, **job, "RANK": str(rank)})
        for rank in range(num_ranks)
    ]
    try:
        statuses = [rank.wait(timeout=600) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    if any(statuses):
        raise RuntimeError(f"ranks that {what} ended with {statuses}")


def _values(index: int, tensor: DTensor) -> torch.Tensor:
    """What the local part of the ``index``-th tensor must hold: every element's own number, exact in fp32."""
    _, _, box = local_box(tensor)
    rows = torch.arange(box.offsets[0], box.offsets[0] + box.sizes[0]).reshape(-1, 1)
    columns = torch.arange(box.offsets[1], box.offsets[1] + box.sizes[1])
    return (rows * COLUMNS + columns + index).float()


def _tensors(mesh: DeviceMesh, dim: int, num_tensors: int) -> dict[str, DTensor]:
    found = {}
    for index in range(num_tensors):
        placement = Shard(dim) if mesh.size() > 1 else Replicate()
        size = [ROWS, COLUMNS]
        size[dim] //= mesh.size()
        local = torch.zeros(size)
        found[f"tensor.{index}"] = DTensor.from_local(local, mesh, [placement], run_check=False)
    return found


def _save(root: Path, mesh: DeviceMesh, num_tensors: int) -> None:
    tensors = _tensors(mesh, 0, num_tensors)
    for index, tensor in enumerate(tensors.values()):
        tensor.to_local().copy_(_values(index, tensor))
    with datastates.Checkpointer(root / OURS) as checkpoints:
        checkpoints.checkpoint(0, {"model": tensors}).durable.result()
    dcp.save({"model": tensors}, checkpoint_id=root / DCP)
    dist.barrier()
    if dist.get_rank() == 0:
        fsync_tree(root)


def _load(root: Path, mesh: DeviceMesh, dim: int, num_tensors: int, repeats: int, seed: int) -> list[ReadingSample]:
    tensors = _tensors(mesh, dim, num_tensors)
    expected = [_values(index, tensor) for index, tensor in enumerate(tensors.values())]
    order = random.Random(seed)
    checkpoints = datastates.Checkpointer(root / OURS)

    def load_ours() -> None:
        checkpoints.restore({"model": tensors})
        dist.barrier()

    def load_dcp() -> None:
        dcp.load({"model": tensors}, checkpoint_id=root / DCP)
        dist.barrier()

    def settle() -> None:
        quiesce()
        dist.barrier()

    samples = []
    for repeat in range(repeats + 1):
        loads = [(OURS, load_ours), (DCP, load_dcp)]
        order.shuffle(loads)  # the same on every rank
        seconds, correct = {}, {}
        for library, load in loads:
            for tensor in tensors.values():
                tensor.to_local().fill_(-1)
            seconds[library] = _timed(load, root, settle)
            correct[library] = all(map(torch.equal, (t.to_local() for t in tensors.values()), expected))
        if not correct[DCP]:
            raise RuntimeError("DCP loaded other values than it saved")
        if repeat:  # the first one imports and connects
            samples.append(ReadingSample(ours_s=seconds[OURS], dcp_s=seconds[DCP], correct=correct[OURS]))
            if dist.get_rank() == 0:
                say(f"reshard dim {dim} ours {seconds[OURS] * 1e3:6.0f}  dcp {seconds[DCP] * 1e3:6.0f} ms")
    checkpoints.close()
    return samples


def _rank_main(words: Sequence[str]) -> None:
    what, root, num_tensors, repeats, seed = words[0], Path(words[1]), int(words[2]), int(words[3]), int(words[4])
    quiet_libraries()
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if what == "save":
        _save(root, mesh, num_tensors)
    else:
        reports = []
        for dim in (0, 1):
            samples = _load(root, mesh, dim, num_tensors, repeats, seed)
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, [asdict(sample) for sample in samples])
            reports.append(_slowest(gathered))
        if dist.get_rank() == 0:
            (root / "samples.json").write_text(json.dumps(reports))
    dist.destroy_process_group()


def _slowest(by_rank: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A load has ended when it has on every rank, and is correct only if it is there too."""
    return [
        {
            "ours_s": max(sample["ours_s"] for sample in samples),
            "dcp_s": max(sample["dcp_s"] for sample in samples),
            "correct": all(sample["correct"] for sample in samples),
        }
        for samples in zip(*by_rank, strict=True)
    ]


if __name__ == "__main__":
    _rank_main(sys.argv[1:])
