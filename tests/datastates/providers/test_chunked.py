"""State that is not torch's, through the interface a user writes; the example of the documentation is one of them."""

import mmap
import re
import tempfile
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from conformance import ProviderConformance, assert_same
from held_storage import SMALL_ARENA, HeldStorage
from safetensors.numpy import load_file

import datastates

PAGE = Path(__file__).parents[3] / "docs" / "providers.md"


def documented() -> Any:
    """The class that ``docs/providers.md`` shows."""
    (code,) = re.findall(r"```python\n(class EmbeddingTable.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {"datastates": datastates, "threading": threading}
    exec(code, names)
    return names["EmbeddingTable"], code


def test_the_example_of_the_documentation_has_twenty_lines() -> None:
    lines = [line for line in documented()[1].splitlines() if line.strip()]
    assert len(lines) <= 20


def pages(seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((size, 4), dtype=np.float32) for size in (3, 1, 5)]


class TestDocumented(ProviderConformance):
    def make(self, seed: int) -> dict[str, Any]:
        return {"table": documented()[0](pages(seed)), "nested": {"other": documented()[0](pages(seed + 10)), "n": 1}}

    def change(self, state: dict[str, Any]) -> None:
        for table in (state["table"], state["nested"]["other"]):
            with table.lock:
                for page in table.pages:
                    page *= 0.5
                    page += 1

    def content(self, state: dict[str, Any]) -> Any:
        return [state["table"].pages, state["nested"]["other"].pages]

    def test_stock_readers_see_typed_arrays(self, saved: tuple[Path, Any]) -> None:
        stored = load_file(next(saved[0].glob("step-*")) / "rank-00000.safetensors")
        assert {name for name in stored if name.startswith("table")} == {"table.page0", "table.page1", "table.page2"}
        assert_same(stored["table.page2"], saved[1][0][2])

    def test_the_lock_is_free_when_the_call_returns(self, tmp_path: Path) -> None:
        state = self.make(1)
        with datastates.Checkpointer(tmp_path) as checkpoints:
            checkpoints.checkpoint(0, state)
            assert not state["table"].lock.locked()


class MappedPool(datastates.ChunkedState):
    """Memory that a library has mapped, handed out as it is: several types in one map."""

    def __init__(self, seed: int) -> None:
        with tempfile.TemporaryFile() as file:
            file.truncate(1 << 20)
            self.map = mmap.mmap(file.fileno(), 1 << 20)
        self.map[:] = np.random.default_rng(seed).bytes(1 << 20)

    def sizes(self) -> Mapping[str, int]:
        return {"index": 1 << 18, "values": 3 << 18, "nothing": 0}

    def chunks(self) -> Iterable[Any]:
        view = memoryview(self.map)
        yield view[: 1 << 18].cast("q")
        yield np.frombuffer(self.map, dtype=np.float16, offset=1 << 18).reshape(-1, 64)
        yield b""

    def load(self, chunks: Mapping[str, torch.Tensor]) -> None:
        assert chunks["nothing"].numel() == 0
        self.map[:] = chunks["index"].numpy().tobytes() + chunks["values"].numpy().tobytes()


class TestMapped(ProviderConformance):
    def make(self, seed: int) -> dict[str, Any]:
        return {"pool": MappedPool(seed)}

    def change(self, state: dict[str, Any]) -> None:
        pool = state["pool"].map
        pool[: 1 << 19], pool[1 << 19 :] = pool[1 << 19 :], bytes(reversed(pool[: 1 << 19]))

    def content(self, state: dict[str, Any]) -> Any:
        return state["pool"].map[:]


class Serialised(datastates.ChunkedState):
    """A library that gives its state away as bytes that it makes for the purpose."""

    tier = "python"

    def __init__(self, seed: int) -> None:
        self.words = {f"w{i}": seed * i for i in range(5)}
        self.released: list[str] = []
        self.asked = 0

    def sizes(self) -> Mapping[str, int]:
        return {"words": len(repr(self.words)), "weights": 16}

    def chunks(self) -> Iterable[Any]:
        self.asked += 1
        return [repr(self.words).encode(), torch.full((8,), float(self.words["w1"]), dtype=torch.bfloat16)]

    def release(self) -> None:
        self.released.append(threading.current_thread().name)

    def load(self, chunks: Mapping[str, torch.Tensor]) -> None:
        pairs = re.findall(r"'(\w+)': (\d+)", bytes(chunks["words"].numpy()).decode())
        self.words = {key: int(value) for key, value in pairs}
        assert chunks["weights"].dtype == torch.bfloat16


class TestSerialised(ProviderConformance):
    """Its sizes change from step to step."""

    def make(self, seed: int) -> dict[str, Any]:
        return {"library": datastates.per_rank(Serialised(seed)), "common": Serialised(seed)}

    def change(self, state: dict[str, Any]) -> None:
        for library in (state["library"].value, state["common"]):
            library.words = {key: 10 * value + 1 for key, value in library.words.items()}

    def content(self, state: dict[str, Any]) -> Any:
        return [state["library"].value.words, state["common"].words]


# ---- release


def test_what_was_made_for_the_call_is_taken_over_and_released_when_copied(
    storage: HeldStorage, tmp_path: Path
) -> None:
    """Nothing else of the state can be overwritten by this: the bytes are nobody's but the checkpoint's."""

    class Large(Serialised):
        def sizes(self) -> Mapping[str, int]:
            return {"blob": 8 << 20}

        def chunks(self) -> Iterable[Any]:
            self.asked += 1
            return [np.full(8 << 20, self.asked, dtype=np.uint8)]

    library = Large(1)
    with datastates.Checkpointer(tmp_path, **SMALL_ARENA) as checkpoints:
        storage.hold(opens_at_gate=False)
        handle = checkpoints.checkpoint(0, {"library": library})
        assert (library.asked, library.released) == (1, [])
        storage.release()
        handle.safe_to_mutate.result(60)
        assert library.released == ["ds-copied"]
        path = handle.durable.result(60)
    assert (load_file(path / "rank-00000.safetensors")["library.blob"] == 1).all()


def test_live_memory_declared_lazy_is_released_when_copied(storage: HeldStorage, tmp_path: Path) -> None:
    pool, released = MappedPool(1), threading.Event()
    pool.release = released.set  # type: ignore[method-assign]
    with datastates.Checkpointer(tmp_path, lazy=["pool.*"], **SMALL_ARENA) as checkpoints:
        storage.hold(opens_at_gate=False)
        handle = checkpoints.checkpoint(0, {"pool": pool, "more": torch.zeros(1 << 19)})
        assert not released.is_set()
        storage.release()
        handle.safe_to_mutate.result(60)
        assert released.is_set()


class Counted(Serialised):
    tier: ClassVar[Any] = "host"

    def __init__(self, sizes: dict[str, int], chunks: list[Any]) -> None:
        super().__init__(1)
        self.announced, self.given = sizes, chunks

    def sizes(self) -> Mapping[str, int]:
        return self.announced

    def chunks(self) -> Iterable[Any]:
        return self.given


@pytest.mark.parametrize(
    ("sizes", "chunks", "message"),
    [
        ({"a": 3}, [b"abcd"], r"^c\.a: chunks\(\) gave 4 bytes, sizes\(\) announced 3"),
        ({"a": 4, "b": 1}, [b"abcd"], r"^c\.b: chunks\(\) gave 0 bytes, sizes\(\) announced 1"),
        ({"a": 4}, [b"abcd", b"e"], r"^c: chunks\(\) gave more than the 1 chunks"),
        ({"a": 16}, [np.zeros(2, dtype=">i8")], r"^c\.a: .*; hand it out as bytes"),
    ],
)
def test_what_does_not_keep_its_promise_is_refused_and_released(
    tmp_path: Path, sizes: dict[str, int], chunks: list[Any], message: str
) -> None:
    state = Counted(sizes, chunks)
    with datastates.Checkpointer(tmp_path) as checkpoints:
        with pytest.raises((ValueError, TypeError), match=message):
            checkpoints.checkpoint(0, {"c": state})
        assert state.released == ["MainThread"]


def test_it_is_released_if_something_else_of_the_state_is_refused(tmp_path: Path) -> None:
    state = Serialised(1)
    with datastates.Checkpointer(tmp_path) as checkpoints:
        with pytest.raises(TypeError, match="no typed JSON form"):
            checkpoints.checkpoint(0, {"c": state, "odd": [object()]})
        assert state.released == ["MainThread"]
        checkpoints.checkpoint(1, {"c": state}).durable.result(60)
        assert state.released == ["MainThread", "ds-copied"]


def test_the_wrong_tier_is_refused(tmp_path: Path) -> None:
    state = Counted({"a": 1}, [b"x"])
    state.tier = "device"  # type: ignore[misc]
    with (
        datastates.Checkpointer(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=r"^c\.a is on cpu, but its tier is 'device'"),
    ):
        checkpoints.checkpoint(0, {"c": state})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device_memory_of_a_library_is_copied_and_released(tmp_path: Path) -> None:
    class OnDevice(Counted):
        tier = "device"

        def load(self, chunks: Mapping[str, torch.Tensor]) -> None:
            self.given[0].copy_(chunks["a"])

    state = OnDevice({"a": 4096}, [torch.arange(1024, dtype=torch.int32, device="cuda")])
    expected = state.given[0].cpu()
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, {"c": state}).durable.result(60)
        assert len(state.released) == 1
        state.given[0].zero_()
        checkpoints.restore({"c": state})
    assert torch.equal(state.given[0].cpu(), expected)
