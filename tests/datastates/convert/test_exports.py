"""Exports: what other libraries read from them is what was saved, and a failed export leaves nothing."""

import collections
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from training import assert_same_bits, small_model, train_step

from datastates import Checkpointer, CheckpointReader, DamagedCheckpointError, open_checkpoint
from datastates.convert import export, import_state, source

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninit:UserWarning")
Saved = tuple[Path, dict[str, Any]]


def expected(reader: CheckpointReader) -> dict[str, torch.Tensor]:
    names = [*reader.names(), *reader.manifest.aliases]
    return {name: reader.read(name) for name in names}


@pytest.fixture(params=[1 << 20, 100], ids=["one piece", "row by row"])
def piece_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PIECE_BYTES", request.param)


@pytest.mark.usefixtures("piece_bytes")
def test_one_safetensors_file_holds_every_tensor_under_its_name(saved: Saved, tmp_path: Path) -> None:
    reader = open_checkpoint(saved[0])
    seen: list[tuple[int, int]] = []
    export(reader, tmp_path / "all.safetensors", to="safetensors", progress=lambda *at: seen.append(at))
    found = load_file(tmp_path / "all.safetensors")
    assert set(found) == set(expected(reader))
    for name, tensor in expected(reader).items():
        assert_same_bits(found[name], tensor, name)
    assert seen[-1][0] == seen[-1][1] == sum(tensor.nbytes for tensor in found.values())


def test_a_part_can_be_cast_and_stripped(saved: Saved, tmp_path: Path) -> None:
    reader = open_checkpoint(saved[0])
    path = tmp_path / "model.safetensors"
    export(reader, path, to="safetensors", only=["model.*"], dtype=torch.bfloat16, strip="model.")
    found = load_file(path)
    state = saved[1]["model"].state_dict()
    assert set(found) == set(state)
    for name, tensor in state.items():
        as_exported = tensor.bfloat16() if tensor.is_floating_point() else tensor
        assert_same_bits(found[name], as_exported.detach(), name)


@pytest.mark.usefixtures("piece_bytes")
def test_stock_dcp_loads_the_export_into_live_state_dicts(saved: Saved, tmp_path: Path) -> None:
    reader = open_checkpoint(saved[0])
    export(reader, tmp_path / "dcp", to="dcp")
    whole = expected(reader)
    target: dict[str, Any] = {name: torch.zeros_like(t) for name, t in whole.items() if t.numel()}
    target["scheduler.last_epoch"] = -1
    target["progress.epoch"] = -1
    dcp.load(target, storage_reader=dcp.FileSystemReader(tmp_path / "dcp"), no_dist=True)
    assert (target.pop("scheduler.last_epoch"), target.pop("progress.epoch")) == (0, 1)
    for name, tensor in target.items():
        assert_same_bits(tensor, whole[name], name)


@pytest.mark.usefixtures("piece_bytes")
def test_a_torch_file_holds_the_state_as_nested_dicts(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datastates.convert.torch_file.IN_MEMORY_BYTES", 1000)  # so through a scratch file
    export(open_checkpoint(saved[0]), tmp_path / "all.pt", to="torch")
    found = torch.load(tmp_path / "all.pt", weights_only=False)  # for the state of a NumPy generator
    state = saved[1]
    for name, tensor in state["model"].state_dict().items():
        assert_same_bits(found["model"][name], tensor.detach(), name)
    for name, parameter in state["model"].named_parameters():
        for key, item in state["optimizer"].state[parameter].items():
            assert_same_bits(found["optimizer"]["state"][name][key], item, name)
    (group,) = found["optimizer"]["param_groups"]
    assert (group["lr"], group["params"]) == (0.01, [name for name, _ in state["model"].named_parameters()])
    assert found["progress"] == state["progress"]
    assert found["scheduler"]["last_epoch"] == 0
    assert_same_bits(found["extra"]["half"], state["extra"]["half"])
    tied = found["nets"]
    assert tied["tied.embedding.weight"].data_ptr() == tied["tied.head.weight"].data_ptr()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def tiny_gpt() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=31, n_positions=16)
    torch.manual_seed(3)
    return transformers.GPT2LMHeadModel(config)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 2000])
def test_transformers_loads_a_hugging_face_directory(tmp_path: Path, max_shard_bytes: int) -> None:
    model = tiny_gpt()
    with Checkpointer(tmp_path / "run") as checkpoints:
        checkpoints.checkpoint(0, {"model": model, "note": "x"}).durable.result(60)
    model.config.save_pretrained(tmp_path / "config")
    export(
        open_checkpoint(tmp_path / "run"),
        tmp_path / "hf",
        to="hf",
        max_shard_bytes=max_shard_bytes,
        config=tmp_path / "config" / "config.json",
    )
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists() == (max_shard_bytes == 2000)
    loaded = type(model).from_pretrained(tmp_path / "hf")
    for name, tensor in model.state_dict().items():
        assert_same_bits(loaded.state_dict()[name], tensor, name)
    config = tmp_path / "config" / "config.json"
    export(open_checkpoint(tmp_path / "run"), tmp_path / "half", to="hf", dtype=torch.bfloat16, config=config)
    half = type(model).from_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    assert_same_bits(half.state_dict()["lm_head.weight"], model.lm_head.weight.detach().bfloat16())


@pytest.mark.parametrize("to", ["safetensors", "hf", "dcp", "torch"])
def test_nothing_is_overwritten_and_a_failed_export_leaves_nothing(saved: Saved, tmp_path: Path, to: str) -> None:
    reader = open_checkpoint(saved[0])
    (tmp_path / "there").touch()
    with pytest.raises(FileExistsError, match=r"there exists already and nothing is ever overwritten"):
        export(reader, tmp_path / "there", to=to)
    (file,) = reader.manifest.files
    content = bytearray((reader.path / file.name).read_bytes())
    content[reader.info("model.0.weight").shards[0].begin] ^= 1
    (reader.path / file.name).write_bytes(content)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DamagedCheckpointError, match=r"checksum mismatch .*model\.0\.weight"):
        export(reader, tmp_path / "new", to=to)
    assert sorted(tmp_path.iterdir()) == before


def test_what_cannot_be_exported_is_named(saved: Saved, tmp_path: Path) -> None:
    reader = open_checkpoint(saved[0])
    with pytest.raises(ValueError, match=r"cannot export to 'onnx', expected one of safetensors, hf"):
        export(reader, tmp_path / "x", to="onnx")
    with pytest.raises(ValueError, match=r"no tensor of .* matches 'modle\.\*'; its names are like"):
        export(reader, tmp_path / "x", to="torch", only=["modle.*"])
    with Checkpointer(tmp_path / "waves") as checkpoints:
        checkpoints.checkpoint(0, {"wave": torch.ones(2, dtype=torch.complex64)}).durable.result(60)
    with pytest.raises(ValueError, match=r"wave is complex64, which safetensors has no name for; .*dcp or torch"):
        export(open_checkpoint(tmp_path / "waves"), tmp_path / "x", to="safetensors")


def test_values_of_one_rank_are_exported_as_that_rank_sees_them(tmp_path: Path) -> None:
    from datastates import per_rank

    with Checkpointer(tmp_path / "run") as checkpoints:
        checkpoints.checkpoint(0, {"expert": per_rank({"w": torch.ones(2), "n": 1})}).durable.result(60)
    export(open_checkpoint(tmp_path / "run"), tmp_path / "x.pt", to="torch")
    found = torch.load(tmp_path / "x.pt")
    assert_same_bits(found["expert"]["w"], torch.ones(2))
    assert found["expert"]["n"] == 1
    with pytest.raises(ValueError, match=r"saved by 1 ranks, there is no rank 1"):
        export(open_checkpoint(tmp_path / "run"), tmp_path / "y.pt", to="torch", rank=1)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("to", ["dcp", "torch"])
def test_tensors_inside_python_values_of_every_kind_are_exported(
    tmp_path: Path, to: str, dtype: torch.dtype | None
) -> None:
    """Arrays stored as tensors, and what DCP pickles whole: deques and tuples."""
    generator = np.random.default_rng(5)
    state = {
        "arrays": {"large": generator.random(40_000), "small": generator.random(3)},
        "queue": collections.deque([torch.full((2,), 0.3), {"deep": (torch.ones(1),)}], maxlen=4),
        "pair": (torch.arange(3), "three"),
        "plain": {"weight": torch.full((2,), 0.3)},
    }
    with Checkpointer(tmp_path / "run") as checkpoints:
        checkpoints.checkpoint(0, state)
    export(open_checkpoint(tmp_path / "run"), tmp_path / "out", to=to, dtype=dtype)
    import_state(tmp_path / "out", tmp_path / "again", format=to, allow_pickle=True)
    found = open_checkpoint(tmp_path / "again").python()
    for name in ("large", "small"):
        assert found["arrays"][name].tobytes() == state["arrays"][name].tobytes()
    tensor, nested = found["queue"]
    assert_same_bits(tensor, state["queue"][0].to(dtype))
    assert nested["deep"][0].item() == 1
    assert_same_bits(found["pair"][0], torch.arange(3))
    assert found["pair"][1] == "three"
    assert_same_bits(open_checkpoint(tmp_path / "again").read("plain.weight"), torch.full((2,), 0.3).to(dtype))


@pytest.mark.parametrize("to", ["dcp", "torch"])
def test_a_state_dict_of_an_optimizer_in_a_dict_of_the_users_is_exported_as_it_is(tmp_path: Path, to: str) -> None:
    model = small_model(seed=1)
    optimizer = torch.optim.AdamW(model.named_parameters())
    train_step(model, optimizer)
    with Checkpointer(tmp_path / "run") as checkpoints:
        checkpoints.checkpoint(0, {"mine": optimizer.state_dict()})
    reader = open_checkpoint(tmp_path / "run")
    export(reader, tmp_path / "out", to=to)
    key = "mine.state.1.exp_avg"
    target = {key: torch.zeros_like(reader.read(key))}
    if to == "dcp":
        dcp.load(target, storage_reader=dcp.FileSystemReader(tmp_path / "out"), no_dist=True)
    else:
        target[key] = torch.load(tmp_path / "out")["mine"]["state"][1]["exp_avg"]
    assert_same_bits(target[key], optimizer.state_dict()["state"][1]["exp_avg"])


def test_optimizer_state_under_odd_keys_and_of_no_parameter_goes_out_and_comes_back(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    for number, parameter in enumerate(model.parameters()):
        optimizer.state[parameter] = {0: torch.full((2,), float(number)), "count": number}
    optimizer.state["rounds"] = 7
    with Checkpointer(tmp_path / "run") as checkpoints:
        checkpoints.checkpoint(0, {"model": model, "optimizer": optimizer})
    export(open_checkpoint(tmp_path / "run"), tmp_path / "all.pt", to="torch")
    state = torch.load(tmp_path / "all.pt")["optimizer"]["state"]
    assert (state["bias"][0].tolist(), state["bias"]["count"], state["rounds"]) == ([1, 1], 1, 7)
    import_state(tmp_path / "all.pt", tmp_path / "again")
    fresh = torch.optim.SGD(model.named_parameters(), lr=0.5)
    with Checkpointer(tmp_path / "again") as checkpoints:
        checkpoints.restore({"model": model, "optimizer": fresh})
    assert fresh.state["rounds"] == 7
    assert {**fresh.state[model.bias], 0: fresh.state[model.bias][0].tolist()} == {0: [1, 1], "count": 1}


def test_a_value_whose_key_begins_with_another_ones_is_exported_beside_it(tmp_path: Path) -> None:
    with Checkpointer(tmp_path / "run") as checkpoints:
        checkpoints.checkpoint(0, {"a.b": 2, "a": 1, "t": torch.ones(1), "t.x": 3})
    export(open_checkpoint(tmp_path / "run"), tmp_path / "all.pt", to="torch")
    assert torch.load(tmp_path / "all.pt") == {"a": 1, "a.b": 2, "t": torch.ones(1), "t.x": 3}


def test_a_cast_to_integers_is_refused(saved: Saved, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot cast to int8: expected a floating-point type"):
        export(open_checkpoint(saved[0]), tmp_path / "x", to="safetensors", dtype=torch.int8)
