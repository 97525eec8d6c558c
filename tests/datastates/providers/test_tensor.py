"""Tensors of every kind: where they are, how they lie in memory, and what they are made of."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conformance import ProviderConformance, assert_same, in_parts
from training import assert_same_bits

import datastates

# That torch is going to remove quantised tensors is not for those to hear who still have some.
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
]


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class TensorConformance(ProviderConformance):
    """Tensors right in the state, and one in a container; their content is the state."""

    def tensors(self, seed: int) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def make(self, seed: int) -> dict[str, Any]:
        return {**self.tensors(seed), "nested": {"list": [next(iter(self.tensors(seed + 10).values()))]}}

    def change(self, state: dict[str, Any]) -> None:
        for tensor in (*(item for item in state.values() if isinstance(item, torch.Tensor)), *state["nested"]["list"]):
            tensor.copy_((tensor.to(torch.complex64) * 0.5 + 1).to(tensor.dtype) if tensor.numel() else tensor)

    def content(self, state: dict[str, Any]) -> Any:
        return state


@pytest.mark.filterwarnings("ignore:Casting complex values to real:UserWarning")
class TestLayouts(TensorConformance):
    def tensors(self, seed: int) -> dict[str, torch.Tensor]:
        return {
            "plain": randn(seed, 4, 3),
            "transposed": randn(seed, 4, 3).t(),
            "strided": randn(seed, 8, 6)[1::2, ::3],
            "channels_last": randn(seed, 2, 3, 4, 5).to(memory_format=torch.channels_last),
            "inside": randn(seed, 10)[3:7],
            "scalar": randn(seed),
            "strided_scalar": randn(seed, 5)[3],
            "empty": torch.zeros(0, 3),
            "empty_columns": torch.zeros(4, 0),
        }


@pytest.mark.filterwarnings("ignore:Casting complex values to real:UserWarning")
class TestElementTypes(TensorConformance):
    def tensors(self, seed: int) -> dict[str, torch.Tensor]:
        named = "float64 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool"
        types = [getattr(torch, name) for name in named.split()]
        types += [dtype for name, dtype in vars(torch).items() if name.startswith("float8_")]
        return {str(dtype)[6:]: (randn(seed, 5, 3).abs() * 4).to(dtype) for dtype in types}

    def change(self, state: dict[str, Any]) -> None:
        for tensor in (*(item for item in state.values() if isinstance(item, torch.Tensor)), *state["nested"]["list"]):
            tensor.copy_(
                tensor.roll(1, 0)
                if tensor.element_size() > 1
                else tensor.view(torch.uint8).roll(1, 0).view(tensor.dtype)
            )


@pytest.mark.filterwarnings("ignore:Casting complex values to real:UserWarning")
class TestComplex(TensorConformance):
    """Conjugated and negated views are values of their own over memory that has others."""

    def tensors(self, seed: int) -> dict[str, torch.Tensor]:
        wave = randn(seed, 3, 4, dtype=torch.complex64)
        return {
            "wave": wave,
            "double": randn(seed, 2, dtype=torch.complex128),
            "conjugate": randn(seed + 1, 3, 4, dtype=torch.complex64).conj(),
            "conjugate_transpose": randn(seed + 2, 3, 4, dtype=torch.complex64).mH,
            "negative": randn(seed + 3, 3, dtype=torch.complex64).conj().imag,
            "real_part": randn(seed + 4, 3, dtype=torch.complex64).real,
        }

    def test_the_views_are_what_they_are_called(self) -> None:
        tensors = self.tensors(1)
        assert tensors["conjugate"].is_conj()
        assert tensors["negative"].is_neg()
        assert not tensors["real_part"].is_contiguous()


class TestTied(ProviderConformance):
    """One tensor under several names, and views of it that are not the same."""

    def make(self, seed: int) -> dict[str, Any]:
        weight = randn(seed, 6, 4)
        return {
            "weight": weight,
            "again": weight,
            "other_object": weight.view(6, 4),
            "rows": weight[:3],
            "list": [weight],
        }

    def change(self, state: dict[str, Any]) -> None:
        state["weight"].mul_(0.5)

    def content(self, state: dict[str, Any]) -> Any:
        return state

    def test_it_is_stored_once(self, saved: tuple[Path, Any]) -> None:
        manifest = datastates.open_checkpoint(saved[0]).manifest
        assert set(manifest.tensors) == {"weight", "rows"}
        assert dict(manifest.aliases) == {"again": "weight", "other_object": "weight", "list.0": "weight"}

    def test_it_is_one_tensor_afterwards(self, saved: tuple[Path, Any]) -> None:
        state = self.make(seed=2)
        self.restore(saved[0], state)
        assert state["weight"] is state["again"] is state["list"][0]
        assert state["other_object"].data_ptr() == state["rows"].data_ptr() == state["weight"].data_ptr()


@pytest.mark.filterwarnings("ignore:Casting complex values to real:UserWarning")
class TestMemoryMapped(TensorConformance):
    def tensors(self, seed: int) -> dict[str, torch.Tensor]:
        with (
            tempfile.NamedTemporaryFile() as first,
            tempfile.NamedTemporaryFile() as second,
        ):  # maps outlive their names
            mapped = torch.from_file(first.name, shared=True, size=12, dtype=torch.float32)
            array = np.memmap(second.name, dtype=np.float64, mode="w+", shape=(3, 4))
        mapped.copy_(randn(seed, 12))
        array[...] = randn(seed, 3, 4, dtype=torch.float64).numpy()
        return {"mapped": mapped, "numpy": torch.from_numpy(array)}


def test_a_restore_in_place_reaches_the_mapped_file(tmp_path: Path) -> None:
    def mapped(name: str) -> dict[str, Any]:
        size, array = 1000, np.memmap(tmp_path / f"{name}.array", dtype=np.float32, mode="w+", shape=(300, 300))
        return {
            "tensor": torch.from_file(str(tmp_path / name), shared=True, size=size, dtype=torch.float32),
            "array": array,
            "tree": {"array": np.memmap(tmp_path / f"{name}.small", dtype=np.int16, mode="w+", shape=(7,))},
        }

    saved, live = mapped("saved"), mapped("live")
    saved["tensor"].copy_(randn(1, 1000))
    saved["array"][...] = randn(2, 300, 300).numpy()
    saved["tree"]["array"][...] = range(7)
    with datastates.Checkpointer(tmp_path / "runs") as checkpoints:
        checkpoints.checkpoint(0, saved).durable.result(60)
        held = [live["tensor"], live["array"], live["tree"]["array"]]
        checkpoints.restore(live)
    now = [live["tensor"], live["array"], live["tree"]["array"]]
    assert all(a is b for a, b in zip(now, held, strict=True))
    for name in ("", ".array", ".small"):
        assert (tmp_path / f"live{name}").read_bytes() == (tmp_path / f"saved{name}").read_bytes()


class TestQuantized(ProviderConformance):
    """Per tensor and per channel, in the state, in containers, and in a module's buffers and packed weights."""

    def make(self, seed: int) -> dict[str, Any]:
        scales, points = randn(seed, 3).abs().double() + 0.1, torch.tensor([seed, 0, 2])
        channels = torch.quantize_per_channel(randn(seed, 4, 3), scales, points, 1, torch.qint8)
        return {
            "whole": torch.quantize_per_tensor(randn(seed, 4, 3), 0.1 * seed, 3 + seed, torch.quint8),
            "wide": torch.quantize_per_tensor(randn(seed, 5), 0.01 * seed, seed, torch.qint32),
            "strided": torch.quantize_per_tensor(randn(seed, 4, 3), 0.1 * seed, 3, torch.quint8).t(),
            "channels": channels,
            "float_points": torch.quantize_per_channel(
                randn(seed, 2, 3), randn(seed, 2).abs() + 0.1, randn(seed, 2), 0, torch.quint8
            ),
            "nested": {"list": [channels.clone(), {"t": (channels.clone(), seed)}]},
            "model": Packed(seed),
        }

    def change(self, state: dict[str, Any]) -> None:
        for tensor in (state["whole"], state["strided"], state["model"].buffer):
            tensor.copy_(torch.quantize_per_tensor(tensor.dequantize() + 0.3, tensor.q_scale() * 1.5, 9, torch.quint8))
        state["model"].packed = (state["model"].packed[0].clone(), state["model"].packed[1] + 1)

    def content(self, state: dict[str, Any]) -> Any:
        model = state["model"]
        return [{k: v for k, v in state.items() if k != "model"}, model.buffer, model.plain, model.packed]

    restores_in_place = False  # the packed weight is another one afterwards

    def test_plain_quantised_tensors_are_restored_in_place(self, saved: tuple[Path, Any]) -> None:
        state = self.make(seed=2)
        held = [state["whole"], state["strided"], state["nested"]["list"][0], state["model"].buffer]
        addresses = [tensor.data_ptr() for tensor in held]
        self.restore(saved[0], state)
        now = [state["whole"], state["strided"], state["nested"]["list"][0], state["model"].buffer]
        assert all(a is b for a, b in zip(now, held, strict=True))
        assert [tensor.data_ptr() for tensor in now] == addresses

    def test_the_parts_have_the_documented_names_and_values(self, saved: tuple[Path, Any]) -> None:
        reader = datastates.open_checkpoint(saved[0])
        for name, expected in (("whole", saved[1][0]["whole"]), ("channels", saved[1][0]["channels"])):
            integers, scale, point = (reader.read(f"{name}.{part}") for part in ("int_repr", "scale", "zero_point"))
            found, wanted = (integers.double() - point) * scale, expected.dequantize().double()
            assert torch.allclose(found, wanted, rtol=1e-6)  # torch multiplies in float32

    def test_our_reader_gives_them_back_quantised(self, saved: tuple[Path, Any]) -> None:
        assert_same(datastates.open_checkpoint(saved[0]).python()["channels"], saved[1][0]["channels"])


class Packed(torch.nn.Module):
    """Hands out, beside plain tensors, a quantised buffer and a tuple, as torch's quantised modules do."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.register_buffer("buffer", torch.quantize_per_tensor(randn(seed, 6), 0.1 * seed, 2, torch.quint8))
        self.register_buffer("plain", randn(seed, 2))
        self.packed = (torch.quantize_per_tensor(randn(seed, 3, 2), 0.2 * seed, 1, torch.qint8), randn(seed, 3))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}packed"] = self.packed

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        self.packed = state.pop(f"{prefix}packed")
        super()._load_from_state_dict(state, prefix, *rest)


def test_integers_smaller_than_a_byte_are_refused_by_name(tmp_path: Path) -> None:
    small = torch.quantize_per_channel(randn(1, 3, 4), torch.ones(3), torch.zeros(3), 0, torch.quint4x2)
    with (
        datastates.Checkpointer(tmp_path) as checkpoints,
        pytest.raises(TypeError, match=r"^q: torch.quint4x2 packs several integers into a byte; dequantise"),
    ):
        checkpoints.checkpoint(0, {"q": small})


@pytest.mark.parametrize("name", ["sparse", "meta"])
def test_what_has_no_bytes_is_refused_by_name(tmp_path: Path, name: str) -> None:
    tensor = torch.eye(3).to_sparse() if name == "sparse" else torch.zeros(3, device="meta")
    with (
        datastates.Checkpointer(tmp_path) as checkpoints,
        pytest.raises(TypeError, match=r"^odd\.0 is a .* only dense tensors"),
    ):
        checkpoints.checkpoint(0, {"odd": [tensor]})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Casting complex values to real:UserWarning")
class TestOnDevice(TensorConformance):
    """CUDA memory, and pinned memory of the host."""

    def tensors(self, seed: int) -> dict[str, torch.Tensor]:
        return {
            "device": randn(seed, 300, 200).cuda(),
            "strided": randn(seed, 30, 20).cuda().t(),
            "half": randn(seed, 7).cuda().bfloat16(),
            "scalar": randn(seed).cuda(),
            "empty": torch.zeros(0, 3, device="cuda"),
            "conjugate": randn(seed, 5, dtype=torch.complex64).cuda().conj(),
            "pinned": randn(seed, 300, 200).pin_memory(),
        }

    def test_they_are_where_they_were(self, saved: tuple[Path, Any]) -> None:
        state = self.make(seed=2)
        self.restore(saved[0], state)
        assert state["device"].is_cuda
        assert state["pinned"].is_pinned()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_and_its_optimizer_on_a_device_go_on_alike(tmp_path: Path) -> None:
    def make(seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        model = torch.nn.Linear(64, 64).cuda()
        return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)}

    def train(state: dict[str, Any]) -> None:
        state["model"](torch.ones(2, 64, device="cuda")).square().mean().backward()
        state["optimizer"].step()
        state["optimizer"].zero_grad()

    saved, live = make(1), make(2)
    train(saved)
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, saved)
        train(saved)
        checkpoints.wait()
        checkpoints.restore(live)
    train(live)
    for now, then in zip(live["model"].parameters(), saved["model"].parameters(), strict=True):
        assert_same_bits(now, then)
    assert all(item.is_cuda for items in live["optimizer"].state.values() for item in items.values())


def test_parts_of_a_quantised_tensor_share_its_memory() -> None:
    tensor = torch.quantize_per_tensor(randn(1, 3), 0.1, 3, torch.quint8)
    from datastates.quantized import joined, parts_of

    parts, axis = parts_of(tensor)
    assert parts["int_repr"].data_ptr() == tensor.data_ptr()
    before = copy.deepcopy(in_parts(tensor))
    for now, then in zip(in_parts(joined(parts, axis)), before, strict=True):
        assert_same_bits(now, then)
