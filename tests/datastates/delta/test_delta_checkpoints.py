"""Delta checkpoints end to end: what is written, what is referred to, and that every one is the state it was."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deltas import COLUMNS, DELTA, EXTENT_BYTES, FULL, ROWS, Lora, assert_holds, left, save, train, values
from training import assert_same_bits

from datastates import Checkpointer
from datastates.data_file import plan_data_file
from datastates.directory import read_manifest
from datastates.plan import Held, Piece
from oneflow_sbp import Box


@pytest.mark.parametrize("lazy", [(), ("model.base.*",)])
def test_the_frozen_base_of_an_adapter_is_written_once(tmp_path: Path, lazy: tuple[str, ...]) -> None:
    model = Lora()
    optimizer = torch.optim.AdamW(model.adapter.parameters(), lr=0.1)
    state = {"model": model, "optimizer": optimizer}
    train(model, optimizer)  # the first step makes the moments: another structure
    with Checkpointer(tmp_path, full_every=8, lazy=lazy) as checkpoints:
        full, first = save(checkpoints, 0, state)
        train(model, optimizer)
        delta, second = save(checkpoints, 1, state)
    assert checkpoints.stats().num_deltas == 1
    assert full > 1 << 20
    assert delta < 4 * EXTENT_BYTES + 8192  # adapter and its moments, and what shares their extents
    assert left(tmp_path / "step-00000001") == {
        "manifest.json",
        "rank-00000.objects.json",
        DELTA,
        "rank-00000.from-step-00000000.base",
    }
    assert_holds(tmp_path / "step-00000000", first)
    assert_holds(tmp_path / "step-00000001", second)
    other = Lora()
    fresh = {"model": other, "optimizer": torch.optim.AdamW(other.adapter.parameters())}
    with Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.restore(fresh) == 2
    for name, tensor in values(fresh).items():
        assert_same_bits(tensor, second[name], name)


def test_touched_rows_of_an_embedding_cost_their_extents(tmp_path: Path) -> None:
    table = torch.randn(ROWS, COLUMNS)
    with Checkpointer(tmp_path, full_every=8) as checkpoints:
        save(checkpoints, 0, {"table": table})
        table[5] += 1
        table[3000:3010] += 1
        delta, now = save(checkpoints, 1, {"table": table})
    assert delta <= 4096 + 3 * EXTENT_BYTES
    assert_holds(tmp_path / "step-00000001", now)


def test_nothing_changed_writes_the_header_alone(tmp_path: Path) -> None:
    table = torch.randn(ROWS, COLUMNS)
    with Checkpointer(tmp_path, full_every=8) as checkpoints:
        save(checkpoints, 0, {"table": table})
        delta, now = save(checkpoints, 1, {"table": table})
    assert delta == 4096
    assert os.stat(tmp_path / "step-00000001" / DELTA).st_blocks * 512 < 65536
    assert_holds(tmp_path / "step-00000001", now)


def test_a_delta_in_which_everything_changed_is_a_full_checkpoint(tmp_path: Path) -> None:
    table = torch.randn(ROWS, COLUMNS)
    with Checkpointer(tmp_path, full_every=8) as checkpoints:
        save(checkpoints, 0, {"table": table})
        table += 1
        size, now = save(checkpoints, 1, {"table": table})
        assert (checkpoints.stats().num_deltas, size) == (0, 4096 + 4 * table.numel())
    assert left(tmp_path / "step-00000001") == {"manifest.json", "rank-00000.objects.json", FULL}
    assert json.loads((tmp_path / "step-00000001" / "manifest.json").read_bytes())["format_version"] == 1
    assert_holds(tmp_path / "step-00000001", now)


def test_chains_begin_anew_and_name_only_what_they_need(tmp_path: Path) -> None:
    table = torch.randn(ROWS, COLUMNS)
    sources = []
    with Checkpointer(tmp_path, full_every=4, keep_last=None) as checkpoints:
        for step in range(9):
            table[100 * step] += 1  # extents 0, 0, 1, 2, 3, 3, 4, 5, 6 of 128 rows each
            _, now = save(checkpoints, step, {"table": table})
            (file,) = read_manifest(tmp_path / f"step-{step:08d}").files
            sources.append([int(name.split("-")[3].removesuffix(".base")) for name in file.sources])
            assert_holds(tmp_path / f"step-{step:08d}", now)
    # The row of step 1 lies in the extent of step 0's; what a later delta writes again needs no earlier delta.
    assert sources == [[], [0], [1, 0], [2, 1, 0], [], [4], [5, 4], [6, 5, 4], []]


def test_every_survivor_of_retention_is_whole_by_itself(tmp_path: Path) -> None:
    table = torch.randn(ROWS, COLUMNS)
    kept = {}
    with Checkpointer(tmp_path, full_every=5, keep_last=2) as checkpoints:
        for step in range(12):
            table[(700 * step) % ROWS] += 1
            _, kept[step] = save(checkpoints, step, {"table": table})
            for alive in range(max(0, step - 1), step + 1):
                assert_holds(tmp_path / f"step-{alive:08d}", kept[alive])
    assert checkpoints.steps() == [10, 11]
    alone = tmp_path.with_name("alone")
    shutil.move(tmp_path / "step-00000011", alone / "step-00000011")
    shutil.rmtree(tmp_path)
    assert_holds(alone, kept[11])


def test_another_structure_begins_a_chain(tmp_path: Path) -> None:
    table = torch.randn(ROWS, COLUMNS)
    with Checkpointer(tmp_path, full_every=8) as checkpoints:
        save(checkpoints, 0, {"table": table})
        _, now = save(checkpoints, 1, {"table": table, "more": torch.ones(3)})
        assert checkpoints.stats().num_deltas == 0
        assert FULL in left(tmp_path / "step-00000001")
        save(checkpoints, 2, {"table": table, "more": torch.ones(3)})
        assert checkpoints.stats().num_deltas == 1
    assert_holds(tmp_path / "step-00000001", now)


def test_deltas_are_off_unless_asked_for(
    open_checkpoints: Callable[..., Checkpointer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nothing is compared, nor prepared for it."""
    monkeypatch.delattr("datastates.saving.new_content_key")
    checkpoints = open_checkpoints()
    for step in range(2):
        taken = checkpoints.checkpoint(step, {"table": torch.ones(ROWS)})
        taken.durable.result(60)
        assert taken.snapshot.extent_digests() is None
        assert len(taken.snapshot.extent_changed()) == 0
    assert checkpoints.stats().num_deltas == 0
    assert left(tmp_path / "run" / "step-00000001") == {"manifest.json", "rank-00000.objects.json", FULL}


def test_fine_extents_end_on_blocks_and_are_not_too_many() -> None:
    held = [Held("w", "float32", 4, (40 << 20,), Box((0,), (40 << 20,)), 0)]
    plan = plan_data_file(held, [Piece(0, "w", held[0].box)], 1 << 20, 4096)
    assert all(int(end) % 4096 == 0 for end in plan.extent_ends[:-1])
    assert len(plan.extent_ends) == 40 * 1024  # 160 MiB
    many = plan_data_file(held, [Piece(0, "w", held[0].box)], 1 << 20, 2048)
    assert len(many.extent_ends) == len(plan.extent_ends)
