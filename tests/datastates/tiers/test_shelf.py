"""Deltas in tiers: what checkpoints share is sent once, referred to or linked, and stays while somebody needs it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datastates import Checkpointer, DamagedCheckpointError, Tier, open_checkpoint
from datastates.directory import CheckpointDirectory
from datastates.manifest import FILE_NAME
from datastates.tiers.fetch import fetch
from datastates.tiers.pace import Pace
from datastates.tiers.plan import Check, Piece
from datastates.tiers.shelf import SHARED, WHERE, Stored, dump, load
from datastates.tiers.stores import open_store
from datastates.tiers.stores.base import complete_steps

Open = Callable[..., Checkpointer]
FROZEN_BYTES = 4 << 20


class Growing:
    """Frozen values, and rows of an embedding that change a few at a time."""

    def __init__(self) -> None:
        self.frozen = torch.randn(FROZEN_BYTES // 4, generator=torch.Generator().manual_seed(0))
        self.rows = torch.zeros(64, 16384)  # 64 KiB each
        self.saved: dict[int, torch.Tensor] = {}

    def save(self, checkpoints: Checkpointer, step: int) -> str | None:
        self.rows[step % 64].fill_(step + 1)
        taken = checkpoints.checkpoint(step, {"frozen": self.frozen, "rows": self.rows})
        self.saved[step] = self.rows.clone()
        return taken.replicated.result(60)

    def assert_in(self, tier: Tier, step: int, scratch: Path) -> None:
        """Fetched from the tier, bit for bit."""
        scratch.mkdir()
        path = fetch(
            open_store(tier), CheckpointDirectory(scratch), step, pace=Pace(None, 0), threads=2, part_bytes=6 << 20
        )
        reader = open_checkpoint(path)
        assert reader.verify() == []
        assert reader.read("frozen").equal(self.frozen)
        assert reader.read("rows").equal(self.saved[step])


def changed(tier: Tier, **fields: Any) -> Tier:
    return Tier(**(vars(tier) | fields))


def test_what_did_not_change_is_sent_once(tier: Tier, open_run: Open, tmp_path: Path) -> None:
    """Two jobs, retention that takes the origin's manifest away, and every survivor restores."""
    growing, tier = Growing(), changed(tier, keep_last=2)
    with open_run(tier, full_every=50) as checkpoints:
        for step in range(6):
            growing.save(checkpoints, step)
    sent_bytes = checkpoints.stats().bytes_replicated_total
    assert FROZEN_BYTES + growing.rows.nbytes < sent_bytes < FROZEN_BYTES + growing.rows.nbytes + (2 << 20)
    steps = complete_steps(open_store(tier).listing())
    assert steps == [4, 5]
    for step in steps:
        growing.assert_in(tier, step, tmp_path / f"fetched-{step}")
    shutil.rmtree(tmp_path / "run")
    checkpoints = open_run(tier)
    assert checkpoints.latest() == f"{tier.url}/step-00000005"
    live = {"frozen": torch.zeros_like(growing.frozen), "rows": torch.zeros_like(growing.rows)}
    assert checkpoints.restore(live) == 6
    assert live["rows"].equal(growing.saved[5])


def test_what_the_tier_never_had_is_sent_once_too(tier: Tier, open_run: Open, tmp_path: Path) -> None:
    """The tier takes every third checkpoint: the sources of the others go to a place of their own."""
    growing, tier = Growing(), changed(tier, every=3, keep_last=None)
    with open_run(None, full_every=50) as checkpoints:  # step 0 is the full one, and no tier knows of it
        growing.save(checkpoints, 0)
    checkpoints = open_run(tier, full_every=50)
    for step in range(1, 8):
        growing.save(checkpoints, step)
    checkpoints.close()
    steps = complete_steps(open_store(tier).listing())
    assert steps == [1, 4, 7]
    assert checkpoints.stats().bytes_replicated_total < FROZEN_BYTES + growing.rows.nbytes + (3 << 20)
    for step in steps:
        growing.assert_in(tier, step, tmp_path / f"fetched-{step}")


def test_nothing_is_left_when_nobody_needs_it(tier: Tier, open_run: Open) -> None:
    growing, tier = Growing(), changed(tier, keep_last=1, every=2)
    with open_run(tier, full_every=4) as checkpoints:
        for step in range(11):
            growing.save(checkpoints, step)
        last = growing.save(checkpoints, 12)
    with open_run(tier) as checkpoints:  # no more deltas
        checkpoints.checkpoint(14, {"frozen": growing.frozen, "rows": growing.rows}).replicated.result(60)
    assert last is not None
    listing = {folder: files for folder, files in open_store(tier).listing().items() if folder}
    assert list(listing) == ["step-00000014"]
    assert sorted(listing["step-00000014"]) == [FILE_NAME, "rank-00000.objects.json", "rank-00000.safetensors"]


def test_a_missing_source_is_damage(open_run: Open, tmp_path: Path) -> None:
    tier, growing = Tier(f"memory://{tmp_path.name}/run"), Growing()
    with open_run(tier, full_every=50) as checkpoints:
        for step in range(2):
            growing.save(checkpoints, step)
    store = open_store(tier)
    for name, told in ((f"step-00000001/{WHERE}", "where.json is missing"), ("step-00000000", "missing|has gone")):
        store.drop(name) if "/" in name else store.remove(name)
        with pytest.raises(DamagedCheckpointError, match=told):
            growing.assert_in(tier, 1, tmp_path / f"scratch-{len(name)}")


def test_shared_objects_are_in_their_folder(open_run: Open, tmp_path: Path) -> None:
    tier, growing = Tier(f"memory://{tmp_path.name}/run", every=2), Growing()
    with open_run(tier, full_every=50) as checkpoints:
        for step in range(3):
            growing.save(checkpoints, step)
    store = open_store(tier)
    where = load(store.get(f"step-00000002/{WHERE}"), "")
    assert where["rank-00000.from-step-00000000.base"].object == "step-00000000/rank-00000.safetensors"
    assert where["rank-00000.from-step-00000001.base"].object.startswith(
        f"{SHARED}/rank-00000.from-step-00000001.base-"
    )


@given(st.data())
def test_a_stored_object_finds_every_range_it_holds(data: st.DataObject) -> None:
    edges = sorted(data.draw(st.sets(st.integers(0, 200), min_size=2, max_size=12)))
    runs = tuple((b, e) for b, e in zip(edges[::2], edges[1::2], strict=False))
    content = bytes(range(201))
    packed = b"".join(content[b:e] for b, e in runs)
    stored = Stored("object", runs)
    begin, end = data.draw(st.sampled_from(runs))
    b = data.draw(st.integers(begin, end - 1))
    e = data.draw(st.integers(b + 1, end))
    at = stored.offset_of(b, e)
    assert packed[at : at + e - b] == content[b:e]
    piece = Piece(tuple(Check(*run, 0) for run in runs), 0)
    assert stored.ranges_of(piece) == [(0, len(packed))]
    with pytest.raises(ValueError, match="does not hold"):
        stored.offset_of(b, 202)
    assert load(dump({"file": stored}), "") == {"file": stored}


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"a": 1}', b'{"a": ["o", [[1]]]}', b'{"a": ["o", [["x", 2]]]}'])
def test_where_is_not_trusted(raw: bytes) -> None:
    with pytest.raises(DamagedCheckpointError, match=r"url/where\.json"):
        load(raw, "url")
