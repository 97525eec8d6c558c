"""The store beside zarr's own: the same answers to every call that reads, and none that writes."""

import asyncio
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import cpu, default_buffer_prototype
from zarr.storage import MemoryStore
from zarr.testing.store import StoreTests

from datastates import zarr_store
from datastates.zarr.store import CheckpointStore

Saved = tuple[Path, dict[str, torch.Tensor]]
PROTOTYPE = default_buffer_prototype()


async def collect(items: Any) -> list[Any]:
    return [item async for item in items]


@pytest.fixture(scope="module")
def both(four_ranks: Saved) -> tuple[CheckpointStore, MemoryStore]:
    """Our store, and zarr's memory store with the same keys and values."""
    store = zarr_store(four_ranks[0], chunk_mb=40e-6)

    async def copy() -> MemoryStore:
        memory = await MemoryStore.open()
        async for key in store.list():
            value = await store.get(key, PROTOTYPE)
            assert value is not None
            await memory.set(key, value)
        return memory

    return store, asyncio.run(copy())


def test_values_are_those_of_a_memory_store(both: tuple[CheckpointStore, MemoryStore]) -> None:
    store, memory = both

    async def compare() -> int:
        absent = ["nowhere", "kinds/c/0", "shapes/line/c/99", "shapes/line/c/00", "shapes/line/c/0/0", "c/0", ""]
        keys = [*await collect(memory.list()), *absent]
        for key in keys:
            assert await store.exists(key) == await memory.exists(key), key
            for wanted in (None, RangeByteRequest(1, 3), OffsetByteRequest(2), SuffixByteRequest(3)):
                ours = await store.get(key, PROTOTYPE, wanted)
                theirs = await memory.get(key, PROTOTYPE, wanted)
                assert (ours and ours.to_bytes()) == (theirs and theirs.to_bytes()), (key, wanted)
        ranges = [("zarr.json", RangeByteRequest(0, 5)), ("nowhere", None), ("shapes/line/c/0", SuffixByteRequest(4))]
        ours, theirs = [await each.get_partial_values(PROTOTYPE, ranges) for each in both]
        assert [value and value.to_bytes() for value in ours] == [value and value.to_bytes() for value in theirs]
        return len(keys)

    assert asyncio.run(compare()) > 100


def test_listings_are_those_of_a_memory_store(both: tuple[CheckpointStore, MemoryStore]) -> None:
    store, memory = both

    async def compare() -> None:
        assert sorted(await collect(store.list())) == sorted(await collect(memory.list()))
        for prefix in ("", "kinds", "kinds/", "shapes/line", "shapes/li", "shapes/deep/c", "shapes/deep/c/0", "x"):
            ours = sorted(await collect(store.list_prefix(prefix)))
            assert ours == sorted(await collect(memory.list_prefix(prefix))), prefix
            ours = sorted(await collect(store.list_dir(prefix)))
            assert ours == sorted(await collect(memory.list_dir(prefix))), prefix
            assert await store.is_empty(prefix) == await memory.is_empty(prefix), prefix
        for prefix in ("", "kinds", "shapes/deep"):
            assert await store.getsize_prefix(prefix) == await memory.getsize_prefix(prefix)

    asyncio.run(compare())


class Opening:
    """Stands for the class in zarr's tests, which hand ``read_only`` over: we are never anything else."""

    def __new__(cls, path: Path, read_only: bool = True) -> CheckpointStore:  # type: ignore[misc]
        return zarr_store(path)

    @staticmethod
    async def open(path: Path, read_only: bool = True) -> CheckpointStore:
        store: CheckpointStore = await CheckpointStore.open(path)
        return store


class Conformance(StoreTests[CheckpointStore, cpu.Buffer]):
    """zarr's suite; most of it writes first. Not collected by its name: the tests below call what reads."""

    store_cls = Opening  # type: ignore[assignment]
    buffer_cls = cpu.Buffer


@pytest.mark.parametrize(
    "name",
    [
        "test_store_context_manager",
        "test_read_only_store_raises",
        "test_with_read_only_store",
        "test_getsize_raises",
        "test_store_eq",
        "test_store_supports_partial_writes",
    ],
)
def test_zarrs_own_tests_of_reading(four_ranks: Saved, name: str) -> None:
    arguments: dict[str, Any] = {
        "store": zarr_store(four_ranks[0]),
        "store_kwargs": {"path": four_ranks[0]},
        "open_kwargs": {"path": four_ranks[0]},
    }
    test = getattr(Conformance, name)
    wanted = test.__code__.co_varnames[1 : test.__code__.co_argcount]
    result = test(object.__new__(Conformance), **{key: arguments[key] for key in wanted})
    assert result is None or asyncio.run(result) is None


def test_it_pickles_as_the_checkpoint_it_was_opened_at(four_ranks: Saved) -> None:
    store = zarr_store(four_ranks[0], chunk_mb=40e-6)
    again = pickle.loads(pickle.dumps(store))
    assert again == store
    assert again != zarr_store(four_ranks[0])
    assert again.path == four_ranks[0] / "step-00000007"
    assert repr(again) == f"CheckpointStore('{again.path}')"
    key = "shapes/line/c/0"
    assert asyncio.run(again.get(key, PROTOTYPE)) == asyncio.run(store.get(key, PROTOTYPE))


def test_a_wrong_request_is_refused(four_ranks: Saved) -> None:
    store = zarr_store(four_ranks[0])
    with pytest.raises(ValueError, match=r"Unexpected byte_range, got \(0, 2\)"):
        asyncio.run(store.get("zarr.json", PROTOTYPE, (0, 2)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="read-only"):
        zarr.open_group(store, mode="a").create_array("new", shape=(1,), dtype="int8")
