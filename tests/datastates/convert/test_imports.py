"""Imports: a live state restores from what other libraries wrote, bit for bit."""

import itertools
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict import get_state_dict
from training import Tied, assert_same_bits, small_model, trained

from datastates import Checkpointer, open_checkpoint
from datastates.convert import export, import_state, tree

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninit:UserWarning")


def restored(directory: Path, step: int) -> tuple[torch.nn.Module, torch.optim.Optimizer, dict[str, Any]]:
    """A fresh state, after restoring the model and the optimizer into it."""
    model = small_model(seed=9)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    progress = {"epoch": -1}
    with Checkpointer(directory) as checkpoints:
        assert checkpoints.restore({"model": model, "optimizer": optimizer, "progress": progress}) == step + 1
    return model, optimizer, progress


def assert_same_training(
    found: tuple[torch.nn.Module, torch.optim.Optimizer], model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    for name, tensor in model.state_dict().items():
        assert_same_bits(found[0].state_dict()[name], tensor, name)
    for (name, mine), theirs in zip(model.named_parameters(), found[0].parameters(), strict=True):
        assert set(optimizer.state[mine]) == set(found[1].state[theirs])
        for key, item in optimizer.state[mine].items():
            assert_same_bits(found[1].state[theirs][key], item, f"{name} {key}")
    assert found[1].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("numbered", [True, False])
def test_a_torch_file_of_a_training_loop(tmp_path: Path, numbered: bool) -> None:
    model, optimizer = trained()
    if not numbered:
        optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.02)
        model(torch.ones(4, 6)).sum().backward()
        optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": {"epoch": 3}}
    torch.save(state, tmp_path / "old.pt")
    path = import_state(tmp_path / "old.pt", tmp_path / "run", step=17)
    assert path == tmp_path / "run" / "step-00000017"
    assert open_checkpoint(path).verify() == []
    *found, progress = restored(tmp_path / "run", 17)
    assert_same_training((found[0], found[1]), model, optimizer)
    assert progress == {"epoch": 3}


def test_a_torch_file_of_one_modules_state(tmp_path: Path) -> None:
    model = Tied(seed=2)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    import_state(tmp_path / "weights.pt", tmp_path / "run")
    assert open_checkpoint(tmp_path / "run").manifest.aliases == {"model.head.weight": "model.embedding.weight"}
    other = Tied(seed=3)
    with Checkpointer(tmp_path / "run") as checkpoints:
        assert checkpoints.restore({"model": other}) == 1
    assert_same_bits(other.head.weight.detach(), model.head.weight.detach())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ""])
def test_what_was_exported_comes_back(saved: tuple[Path, dict[str, Any]], tmp_path: Path, suffix: str) -> None:
    reader = open_checkpoint(saved[0])
    to = {".pt": "torch", ".safetensors": "safetensors", "": "dcp"}[suffix]
    export(reader, tmp_path / f"x{suffix}", to=to)
    import_state(tmp_path / f"x{suffix}", tmp_path / "back", step=4)
    back = open_checkpoint(tmp_path / "back")
    for name in [*reader.names(), *reader.manifest.aliases]:
        assert_same_bits(back.read(name), reader.read(name), name)
    assert back.manifest.aliases == reader.manifest.aliases
    if to == "torch":  # DCP makes lists of tuples, safetensors has no Python values
        assert back.python()["progress"] == reader.python()["progress"]


def test_a_dcp_directory_of_several_sections(tmp_path: Path) -> None:
    model, optimizer = trained()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state, "progress": {"epoch": 5}}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(tmp_path / "dcp"), no_dist=True)
    import_state(tmp_path / "dcp", tmp_path / "run", step=2)
    *found, progress = restored(tmp_path / "run", 2)
    assert_same_training((found[0], found[1]), model, optimizer)
    assert progress == {"epoch": 5}


def test_python_values_of_dcp_are_unpickled_only_if_trusted(tmp_path: Path) -> None:
    dcp.save({"w": torch.ones(2), "path": Path("x")}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    with pytest.raises(
        ValueError, match=r"path of .*dcp holds a pathlib\.\S+, which only pickle can read; .*--allow-pi"
    ):
        import_state(tmp_path / "dcp", tmp_path / "run")
    import_state(tmp_path / "dcp", tmp_path / "run", allow_pickle=True)
    assert open_checkpoint(tmp_path / "run").python()["path"] == Path("x")


@pytest.mark.parametrize("sharded", [True, False])
def test_hugging_face_and_safetensors(tmp_path: Path, sharded: bool) -> None:
    model = small_model(seed=4)
    path = tmp_path / "hf"
    path.mkdir()
    items = list(model.state_dict().items())
    if sharded:
        save_file(dict(items[:3]), path / "a.safetensors")
        save_file(dict(items[3:]), path / "b.safetensors")
        files = {**dict.fromkeys(dict(items[:3]), "a.safetensors"), **dict.fromkeys(dict(items[3:]), "b.safetensors")}
        import json

        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    else:
        save_file(dict(items), path / "model.safetensors")
        path /= "model.safetensors"
    import_state(path, tmp_path / "run", step=3)
    other = small_model(seed=5)
    with Checkpointer(tmp_path / "run") as checkpoints:
        assert checkpoints.restore({"model": other}) == 4
    for name, tensor in model.state_dict().items():
        assert_same_bits(other.state_dict()[name], tensor, name)


def test_a_large_tensor_is_read_and_written_in_extents(tmp_path: Path) -> None:
    values = torch.arange(3 * 2**20, dtype=torch.float32).reshape(3 * 2**10, 2**10)
    save_file({"w": values, "tail": torch.ones(3)}, tmp_path / "big.safetensors")
    reader = open_checkpoint(import_state(tmp_path / "big.safetensors", tmp_path / "run", prefix="net."))
    assert reader.verify() == []
    assert len(reader.manifest.files[0].extent_ends) >= 3
    assert_same_bits(reader.read("net.w"), values)


def test_what_cannot_be_imported_is_named(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"odd": Path("x")}, tmp_path / "odd.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello, this is no tensor at all")
    (tmp_path / "nothing").mkdir()
    for name, error, message in (
        ("list.pt", ValueError, "holds a list, expected a dict"),
        ("odd.pt", ValueError, r"odd\.pt holds a pathlib\.\S+, which only pickle can read; .*--allow-pickle"),
        ("text.pt", ValueError, r"text\.pt .*"),
        ("text.safetensors", ValueError, r"text\.safetensors: not a safetensors file"),
        ("nothing", ValueError, r"nothing has neither model\.safetensors\.index\.json nor"),
        ("gone.pt", FileNotFoundError, "does not exist"),
    ):
        with pytest.raises(error, match=message):
            import_state(tmp_path / name, tmp_path / "run")
    torch.save({"w": torch.ones(1)}, tmp_path / "good.pt")
    import_state(tmp_path / "good.pt", tmp_path / "run")
    with pytest.raises(FileExistsError, match=r"step-00000000 exists already"):
        import_state(tmp_path / "good.pt", tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "step-00000000"]


def test_an_optimizer_that_fits_no_module_is_refused() -> None:
    _, optimizer = trained()
    with pytest.raises(ValueError, match=r"6 parameters have numbers, and 0 modules beside it fit them; save get_opt"):
        tree.named_state({"model": {"w": torch.ones(3)}, "optimizer": optimizer.state_dict()}, "")


def test_two_modules_that_fit_are_too_many() -> None:
    model, optimizer = trained()
    state = {name: model.state_dict() for name in ("model", "teacher")}
    with pytest.raises(ValueError, match=r"2 modules beside it fit"):
        tree.named_state({**state, "optimizer": optimizer.state_dict()}, "")


def test_moments_tell_parameters_from_tensors_of_other_shapes() -> None:
    model, optimizer = trained()
    wrong = {name: tensor.new_zeros(2) for name, tensor in model.state_dict().items()}
    named = tree.named_state({"a": wrong, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, "")
    names = [f"optimizer.state.{n}.{k}" for n, k in itertools.product(dict(model.named_parameters()), ("exp_avg",))]
    assert set(names) <= set(named.tensors)


def test_another_view_of_the_same_memory_is_not_taken_for_a_tied_tensor(tmp_path: Path) -> None:
    values = torch.complex(torch.arange(4.0), torch.ones(4)).reshape(2, 2)
    views = {"values": values, "transposed": values.t(), "conjugated": values.conj()}
    torch.save({"section": views}, tmp_path / "views.pt")
    reader = open_checkpoint(import_state(tmp_path / "views.pt", tmp_path / "imported"))
    for name, view in views.items():
        assert_same_bits(reader.read(f"section.{name}"), view.resolve_conj().contiguous())


class Trap:
    """What a hostile pickle is: making it would make a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_metadata_of_dcp_runs_no_code_unless_trusted(tmp_path: Path) -> None:
    dcp.save({"w": torch.ones(2)}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    (tmp_path / "dcp" / ".metadata").write_bytes(pickle.dumps(Trap(tmp_path / "trapped")))
    with pytest.raises(ValueError, match=r"\.metadata asks for \w+\.mkdir, which only pickle .*--allow-pickle"):
        import_state(tmp_path / "dcp", tmp_path / "run")
    assert not (tmp_path / "trapped").exists()
    with pytest.raises(ValueError, match="is no metadata"):
        import_state(tmp_path / "dcp", tmp_path / "run", allow_pickle=True)
    assert (tmp_path / "trapped").exists()


def test_metadata_of_dcp_cannot_change_classes(tmp_path: Path) -> None:
    dcp.save({"w": torch.ones(2)}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    change = b"ctorch.distributed.checkpoint.metadata\nMetadata\n(N}S'changed'\nI1\nstb."
    (tmp_path / "dcp" / ".metadata").write_bytes(change)
    with pytest.raises(ValueError, match=r"would change <class '.*Metadata'>"):
        import_state(tmp_path / "dcp", tmp_path / "run")
    assert not hasattr(Metadata, "changed")


@pytest.mark.parametrize("outside", ["../secret", "/etc/hostname"])
def test_metadata_of_dcp_cannot_name_files_outside(tmp_path: Path, outside: str) -> None:
    dcp.save({"w": torch.ones(2)}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    metadata = pickle.loads((tmp_path / "dcp" / ".metadata").read_bytes())
    for item in metadata.storage_data.values():
        item.relative_path = outside
    (tmp_path / "dcp" / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match=rf"names a file that is not in its directory: '{outside}'"):
        import_state(tmp_path / "dcp", tmp_path / "run")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"w": "../w.safetensors"}}, r"files that are not in its directory: \.\./w\.safetensors"),
        ({"weight_map": {"w": ".."}}, r"files that are not in its directory: \.\."),
        ({"weight_map": ["w.safetensors"]}, "has no weight_map"),
        ([], "has no weight_map"),
        ({"weight_map": {"w": "w.safetensors", "gone": "w.safetensors"}}, r"names 1 tensors that are in none .* gone"),
    ],
)
def test_an_index_that_does_not_fit_its_directory_is_refused(tmp_path: Path, index: Any, message: str) -> None:
    (tmp_path / "hf").mkdir()
    for path in (tmp_path / "w.safetensors", tmp_path / "hf" / "w.safetensors"):
        save_file({"w": torch.ones(2)}, path)
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        import_state(tmp_path / "hf", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("ties", ["[]", '{"a": 1}', "nonsense"])
def test_ties_that_are_none_are_refused(tmp_path: Path, ties: str) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors", {"elastates_ties": ties})
    with pytest.raises(ValueError, match=r"tied tensors|Expecting value"):
        import_state(tmp_path / "x.safetensors", tmp_path / "run")


@pytest.mark.filterwarnings("ignore:Validating sparse tensor:UserWarning")  # torch 2.15's, before ours refuses it
def test_what_cannot_become_a_checkpoint_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    def refused(state: Any, message: str, **options: Any) -> None:
        torch.save(state, tmp_path / "state.pt")
        with pytest.raises((ValueError, TypeError), match=message):
            import_state(tmp_path / "state.pt", tmp_path / "run", **options)
        assert not (tmp_path / "run").exists()

    refused({"w": torch.ones(2)}, "step is -1, expected 0 or more", step=-1)
    refused({1: "one", "1": "text"}, "two values would have the name 1")
    refused({"section": {"w": torch.eye(2).to_sparse()}}, r"section\.w is a torch\.sparse_coo tensor; only dense")
