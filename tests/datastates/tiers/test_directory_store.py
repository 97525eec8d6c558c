"""A directory as a tier: what it does to files, and in which order."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tier_states import filled

from datastates import Checkpointer
from datastates.directory import CheckpointDirectory
from datastates.tiers.fetch import fetch
from datastates.tiers.pace import Pace
from datastates.tiers.stores.directory import DirectoryStore

import _elastates

STEP = "step-00000003"


@pytest.fixture
def done() -> Iterator[Callable[[], list[tuple[str, str]]]]:
    """What has been done since recording began: (operation, name of its file)."""
    yield lambda: [(done["op"], Path(done["path"]).name) for done in _elastates.take_recording()]
    _elastates.stop_recording()


def test_a_commit_that_could_not_be_synced_is_synced_when_it_is_tried_again(
    tmp_path: Path, done: Callable[[], list[tuple[str, str]]]
) -> None:
    store = DirectoryStore(tmp_path / "tier")
    store.put(f"{store.staging(STEP)}/data", b"data")
    _elastates.set_fault("fsync", nth=2, error=errno.EIO)  # the first one is of the manifest's name
    with pytest.raises(OSError, match=r"syncing directory .*tier: Input/output error"):
        store.commit(STEP, b"manifest")
    _elastates.start_recording()
    store.commit(STEP, b"manifest")
    assert ("fsync_directory", "tier") in done()
    assert store.listing() == {STEP: {"data": 4, "manifest.json": 8}}


def test_what_is_swept_was_renamed_for_good(tmp_path: Path, done: Callable[[], list[tuple[str, str]]]) -> None:
    """A removal whose sync failed is gone on with: a power cut must not undo the renaming but keep the rest."""
    store = DirectoryStore(tmp_path / "tier")
    store.put(f"{STEP}/manifest.json", b"manifest")
    _elastates.set_fault("fsync", error=errno.EIO)
    with pytest.raises(OSError, match=r"syncing directory .*tier: Input/output error"):
        store.remove(STEP)
    store.remove(STEP)
    _elastates.start_recording()
    store.sweep()
    assert [op for op, _ in done()] == ["fsync_directory", "unlink", "rmdir"]
    assert list(store.path.iterdir()) == []


@pytest.mark.parametrize("operation", ["small_write", "small_fsync", "rename"])
def test_a_small_file_that_cannot_be_put_leaves_nothing(tmp_path: Path, operation: str) -> None:
    store = DirectoryStore(tmp_path)
    store.put("writer.json", b"before")
    _elastates.set_fault(operation, error=errno.ENOSPC)
    with pytest.raises(OSError, match="No space left on device"):
        store.put("writer.json", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["writer.json"]
    assert store.get("writer.json") == b"before"


def test_a_fetch_that_cannot_be_made_durable_goes_back_for_good_before_it_is_removed(
    tmp_path: Path, done: Callable[[], list[tuple[str, str]]]
) -> None:
    """Else a power cut could undo the going back, but not the removal, and leave a published step without files."""
    with Checkpointer(tmp_path / "run", replicate_to=tmp_path / "tier") as checkpoints:
        checkpoints.checkpoint(3, filled(3)).replicated.result(60)
    here = CheckpointDirectory(tmp_path / "here")
    here.path.mkdir()
    _elastates.set_fault("fsync", nth=2, error=errno.EIO)  # the first one is of the attempt
    _elastates.start_recording()
    with pytest.raises(OSError, match=r"syncing directory .*here: Input/output error"):
        fetch(DirectoryStore(tmp_path / "tier"), here, 3, pace=Pace(None, 0), threads=2, part_bytes=6 << 20)
    names = [op for op, _ in done() if op in ("rename", "fsync_directory", "unlink")]
    assert names[:5] == ["fsync_directory", "rename", "rename", "fsync_directory", "unlink"]
    assert list(here.path.iterdir()) == []
