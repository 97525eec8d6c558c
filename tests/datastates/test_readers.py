"""Other people's readers: stock torch.distributed.checkpoint and safetensors read our directories."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import load_file
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from training import assert_same_bits, small_model, train_step

from datastates import Checkpointer
from datastates.agreement import SavePlan, make_save_plan
from datastates.data_file import BLOCK_BYTES
from datastates.directory import data_file_name
from datastates.plan import Held
from oneflow_sbp import Box

import _elastates

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninit:UserWarning")
State = dict[str, torch.Tensor]


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, State]:
    """A checkpoint of one rank in several chunks, and the tensors in it."""
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters())
    train_step(model, optimizer)
    torch.manual_seed(0)
    extra = {
        "large": torch.randn(300, 1000),
        "strided": torch.randn(30, 20).t(),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "half": torch.randn(7).bfloat16(),
        "flags": torch.tensor([True, False, True]),
        "eight": torch.randn(5).to(torch.float8_e4m3fn),
        "wave": torch.randn(3, 2, dtype=torch.complex64),
    }
    with Checkpointer(tmp_path / "runs", chunk_bytes=64 << 10) as checkpoints:
        handle = checkpoints.checkpoint(3, {"model": model, "optimizer": optimizer, "extra": extra, "note": [1, "x"]})
        path = handle.durable.result(60)
    expected = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        expected |= {f"optimizer.state.{name}.{key}": value for key, value in optimizer.state[parameter].items()}
    return path, expected | {f"extra.{name}": tensor for name, tensor in extra.items()}


def as_stored(tensor: torch.Tensor) -> torch.Tensor:
    """Complex numbers are stored as bytes, with one more dim."""
    return tensor.contiguous().view(torch.uint8).reshape(*tensor.shape, -1) if tensor.is_complex() else tensor


def test_safetensors_loads_every_file(checkpoint: tuple[Path, State]) -> None:
    path, expected = checkpoint
    found = load_file(path / "rank-00000.safetensors")
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert_same_bits(found[name], as_stored(tensor), name)


def test_safe_open_reads_slices_and_metadata(checkpoint: tuple[Path, State]) -> None:
    path, expected = checkpoint
    with safe_open(path / "rank-00000.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(expected)
        metadata = file.metadata()
        assert metadata["format"] == "pt"
        assert json.loads(metadata["DCP_SHARDING_INFO"])["extra.large"] == {"saved_offsets": [0, 0]}
        assert_same_bits(file.get_slice("extra.large")[17:19], expected["extra.large"][17:19])
        assert_same_bits(file.get_tensor("extra.strided"), expected["extra.strided"])


def test_stock_dcp_loads_the_directory_bit_for_bit(checkpoint: tuple[Path, State]) -> None:
    path, expected = checkpoint
    loadable = {name: as_stored(tensor) for name, tensor in expected.items() if tensor.numel()}
    state = {name: torch.zeros_like(tensor) for name, tensor in loadable.items()}
    dcp.load(state, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    for name, tensor in loadable.items():
        assert_same_bits(state[name], tensor, name)


@pytest.fixture
def ranks_of_four(tmp_path: Path) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """A directory as four ranks write it: one tensor sharded by rows, one replicated and cut by the plan."""
    torch.manual_seed(1)
    sharded, replicated = torch.randn(10, 8), torch.randn(1024, 300)
    cuts = [0, 3, 6, 9, 10]
    boxes = [Box((a, 0), (b - a, 8)) for a, b in itertools.pairwise(cuts)]
    whole = Box.whole((1024, 300))
    held = [[Held("w", "float32", 4, (10, 8), box, 0), Held("r", "float32", 4, (1024, 300), whole, 0)] for box in boxes]
    plan = make_save_plan(held, {}, [frozenset()] * 4, 1 << 20)
    directory = tmp_path / "step-00000000"
    directory.mkdir()
    for rank in range(4):
        write_rank(directory, plan, rank, [sharded[boxes[rank].relative_to(Box.whole((10, 8)))].clone(), replicated])
    return directory, sharded, replicated


def write_rank(directory: Path, plan: SavePlan, rank: int, tensors: list[torch.Tensor]) -> None:
    """Write one rank's file by hand, from the plan alone."""
    file = plan.files[rank]
    content = bytearray(file.header)
    for index, begin, size in zip(file.index.tolist(), file.source_begin.tolist(), file.sizes.tolist(), strict=True):
        source = tensors[index].reshape(-1).view(torch.uint8).numpy().tobytes()
        content += source[begin : begin + size]
    assert len(content) == file.size_bytes
    (directory / data_file_name(rank)).write_bytes(content)


def test_pieces_of_four_ranks_are_put_together(ranks_of_four: tuple[Path, torch.Tensor, torch.Tensor]) -> None:
    path, sharded, replicated = ranks_of_four
    state = {"w": torch.zeros(10, 8), "r": torch.zeros(1024, 300)}
    dcp.load(state, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    assert_same_bits(state["w"], sharded)
    assert_same_bits(state["r"], replicated)
    sizes = [len(load_file(path / data_file_name(rank))) for rank in range(4)]
    assert sizes == [2, 2, 2, 2]


@pytest.fixture
def two_ranks() -> Iterator[dist.DeviceMesh]:
    """This is rank 1 of two, the other does not exist: loading needs no communication."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


@pytest.mark.parametrize("dim", [0, 1])
def test_stock_dcp_reshards(
    ranks_of_four: tuple[Path, torch.Tensor, torch.Tensor], two_ranks: dist.DeviceMesh, dim: int
) -> None:
    path, sharded, replicated = ranks_of_four
    state = {}
    for name, whole in (("w", sharded), ("r", replicated)):
        local = torch.zeros_like(whole.chunk(2, dim)[1].contiguous())
        state[name] = DTensor.from_local(
            local, two_ranks, [Shard(dim)], run_check=False, shape=whole.shape, stride=whole.stride()
        )
    dcp.load(state, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    assert_same_bits(state["w"].to_local(), sharded.chunk(2, dim)[1].contiguous())
    assert_same_bits(state["r"].to_local(), replicated.chunk(2, dim)[1].contiguous())


def test_what_docs_say_of_the_files_is_so(checkpoint: tuple[Path, State]) -> None:
    """A reader from the specification, without our code: digest, sizes, checksums and boxes."""
    import hashlib

    path, expected = checkpoint
    raw = (path / "manifest.json").read_bytes()
    manifest = json.loads(raw)
    assert manifest["digest"] == "sha256:" + hashlib.sha256(raw[:-85]).hexdigest()
    (file,) = manifest["files"]
    content = (path / file["name"]).read_bytes()
    assert len(content) == file["size_bytes"]
    assert file["header_bytes"] == 8 + int.from_bytes(content[:8], "little")
    assert file["header_bytes"] % BLOCK_BYTES == 0
    assert _elastates.crc32c(content[: file["header_bytes"]]) == file["header_crc32c"]
    begin = file["header_bytes"]
    for end, crc in zip(file["extent_ends"], file["extent_crc32c"], strict=True):
        assert _elastates.crc32c(content[begin:end]) == crc
        begin = end
    assert begin == len(content)
    for name, info in manifest["tensors"].items():
        ((number, begin, end, offsets, sizes),) = info["shards"]
        assert (number, offsets, sizes) == (0, [0] * len(sizes), info["shape"])
        values = torch.frombuffer(bytearray(content[begin:end]) or bytearray(1), dtype=torch.uint8)[: end - begin]
        assert_same_bits(values.view(getattr(torch, info["dtype"])).reshape(info["shape"]), expected[name].contiguous())
    assert json.loads((path / manifest["objects"][0]["name"]).read_text())["note"] == [1, "x"]
