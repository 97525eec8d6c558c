"""Copies behind training: what every kind of store promises."""

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from polling import until
from tier_states import filled

from datastates import Checkpointer, DamagedCheckpointError, ReplicationError, Tier, sight
from datastates.directory import CheckpointDirectory
from datastates.manifest import FILE_NAME
from datastates.tiers import replicator
from datastates.tiers.library import Library
from datastates.tiers.pace import Pace
from datastates.tiers.plan import Piece
from datastates.tiers.retention import leaving
from datastates.tiers.shelf import Shelf
from datastates.tiers.stores import Source, open_store
from datastates.tiers.stores.base import complete_steps
from datastates.tiers.upload import JOURNAL, Journal, upload

Open = Callable[..., Checkpointer]


def copy(tier: Tier, **changes: Any) -> Tier:
    return Tier(**(vars(tier) | changes))


def save(checkpoints: Checkpointer, *steps: int) -> list[str | None]:
    return [checkpoints.checkpoint(step, filled(step)).replicated.result(60) for step in steps]


def contents(tier: Tier) -> dict[str, dict[str, bytes]]:
    store = open_store(tier)
    return {
        folder: {file: store.get(f"{folder}/{file}") for file in files}
        for folder, files in store.listing().items()
        if folder
    }


def test_a_copy_has_every_byte_and_its_url(tier: Tier, open_run: Open, tmp_path: Path) -> None:
    checkpoints = open_run(tier)
    (url,) = save(checkpoints, 5)
    assert url == f"{tier.url}/step-00000005"
    checkpoints.close()  # what is removed after the future has resolved is gone, too
    local = {file.name: file.read_bytes() for file in (tmp_path / "run" / "step-00000005").iterdir()}
    assert contents(tier) == {"step-00000005": local}
    stats = checkpoints.stats()
    assert (stats.num_replicated, stats.last_replicated_step) == (1, 5)
    assert stats.bytes_replicated_total == sum(len(c) for name, c in local.items() if name != FILE_NAME)


def test_sinks_hear_of_copies_and_failures(open_run: Open, tmp_path: Path) -> None:
    heard: list[Any] = []
    sight.add_sink(heard.append)
    try:
        checkpoints = open_run(tmp_path / "second")
        (url,) = save(checkpoints, 1)
        (tmp_path / "second" / "step-00000002").mkdir()
        (tmp_path / "second" / "step-00000002" / FILE_NAME).write_text("somebody else's")
        assert checkpoints.checkpoint(2, filled(2)).replicated.exception(60) is not None
        assert sight.flush()
    finally:
        sight.remove_sink(heard.append)
    (copied,) = (event for event in heard if isinstance(event, sight.Replicated))
    (failed,) = (event for event in heard if isinstance(event, sight.ReplicationFailed))
    assert (copied.step, copied.url, copied.size_bytes > 16384) == (1, url, True)
    assert (failed.step, failed.url) == (2, str(tmp_path / "second"))
    assert "nothing is ever overwritten" in failed.error


def test_a_new_machine_restores_from_the_tier(tier: Tier, open_run: Open, tmp_path: Path) -> None:
    with open_run(tier) as checkpoints:
        save(checkpoints, 1, 2)
    shutil.rmtree(tmp_path / "run")
    checkpoints = open_run(tier)
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.latest() == f"{tier.url}/step-00000002"
    state = filled(0)
    assert checkpoints.restore(state) == 3
    assert torch.equal(state["weight"], torch.full((64, 64), 2.0))
    assert state["python"] == {"value": 2}
    assert checkpoints.latest() == tmp_path / "run" / "step-00000002"


def test_retention_is_each_tiers_own(tier: Tier, open_run: Open, tmp_path: Path) -> None:
    checkpoints = open_run(copy(tier, keep_last=2, keep_every=4), keep_last=1)
    save(checkpoints, *range(9))
    checkpoints.close()
    assert complete_steps(open_store(tier).listing()) == [0, 4, 7, 8]
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == ["step-00000008"]


def test_a_tier_takes_what_is_due(tier: Tier, open_run: Open) -> None:
    checkpoints = open_run(copy(tier, every=3, keep_last=None))
    urls = save(checkpoints, *range(1, 9))
    assert [step for step, url in enumerate(urls, 1) if url is not None] == [1, 4, 7]
    assert checkpoints.stats().num_replications_passed_over == 5


def test_going_on_after_restore_copies_what_the_last_job_did_not(tier: Tier, open_run: Open) -> None:
    with open_run(None) as checkpoints:
        checkpoints.checkpoint(7, filled(7)).durable.result(60)
    with open_run(tier) as checkpoints:
        assert checkpoints.restore(filled(0)) == 8
    assert complete_steps(open_store(tier).listing()) == [7]
    assert checkpoints.stats().num_replicated == 1


def test_a_directory_that_cannot_be_written_is_restored_from_all_the_same(
    open_run: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rank 0 alone would raise, with the state restored: what it cannot do now is to copy."""
    with open_run(None) as checkpoints:
        checkpoints.checkpoint(7, filled(7)).durable.result(60)

    def refuse(_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(CheckpointDirectory, "lock", refuse)
    checkpoints = open_run(tmp_path / "second")
    assert checkpoints.restore(filled(0)) == 8
    assert "nothing is copied to tiers before the first checkpoint" in caplog.text
    assert "Read-only file system" in caplog.text


def test_a_listener_that_fails_does_not_end_the_lane(
    open_run: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = open_run(tmp_path / "second")
    with monkeypatch.context() as patch:
        patch.setattr("datastates.tiers.replication.report_of", lambda *_: 1 / 0)
        checkpoints.checkpoint(1, filled(1)).durable.result(60)
        until(lambda: "what became of the copy of step 1" in caplog.text)
    assert save(checkpoints, 2) == [str(tmp_path / "second" / "step-00000002")]
    checkpoints.close()


def test_the_newest_is_looked_for_in_spite_of_what_went_meanwhile(
    open_run: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another job's retention removes a step between the listing and the look."""
    with open_run(tmp_path / "second") as checkpoints:
        save(checkpoints, 1, 2)
    shutil.rmtree(tmp_path / "run")
    checkpoints = open_run(tmp_path / "second")
    places = checkpoints._library.places()
    monkeypatch.setattr(Library, "places", lambda _: places)
    shutil.rmtree(tmp_path / "second" / "step-00000002")
    assert checkpoints.latest() == str(tmp_path / "second" / "step-00000001")


def test_an_interrupted_upload_is_invisible_and_then_swept(tier: Tier, open_run: Open) -> None:
    store = open_store(tier)
    store.put(f"{store.staging('step-00000003')}/{JOURNAL}", b'{"manifest": "sha256:other", "complete": {}}')
    store.put(f"{store.staging('step-00000003')}/rank-00000.safetensors", b"half")
    checkpoints = open_run(tier)
    assert checkpoints.steps() == []
    assert checkpoints.restore(filled(0)) == 0
    save(checkpoints, 1)
    checkpoints.close()
    assert list(contents(tier)) == ["step-00000001"]


def test_an_interrupted_upload_goes_on(
    tier: Tier, open_run: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first job gets two of three pieces across; the next one sends the third, unless files travel whole."""
    tier, num_read, read = copy(tier, part_mb=5.3, threads=1), 0, Source.read

    def read_twice(source: Source, piece: Piece) -> bytes:
        nonlocal num_read
        num_read += piece.size_bytes > 1 << 20
        if num_read > 2:
            raise PermissionError("the disk is gone")
        return read(source, piece)

    with open_run(tier, chunk_bytes=1 << 20) as checkpoints, monkeypatch.context() as broken:
        broken.setattr(Source, "read", read_twice)
        taken = checkpoints.checkpoint(7, filled(7, 2100))
        with pytest.raises(ReplicationError, match="PermissionError: the disk is gone"):
            taken.replicated.result(60)
    with open_run(tier) as checkpoints:
        assert checkpoints.steps() == [7]  # here; nobody sees half of it there
        assert checkpoints.restore(filled(0, 2100)) == 8
    sizes = [file.stat().st_size for file in (tmp_path / "run" / "step-00000007").iterdir() if file.name != FILE_NAME]
    not_sent_again = sum(sizes) - checkpoints.stats().bytes_replicated_total
    assert complete_steps(open_store(tier).listing()) == [7]
    if tier.url.startswith("memory"):
        assert not_sent_again == 0
    else:
        assert 10_600_000 <= not_sent_again <= 17_000_000


def test_another_uploads_leftovers_of_the_same_step_do_not_mix_with_ours(tier: Tier, open_run: Open) -> None:
    store = open_store(tier)
    store.put(f"{store.staging('step-00000003')}/{JOURNAL}", b"no json")
    store.put(f"{store.staging('step-00000003')}/rank-00001.safetensors", b"half")
    checkpoints = open_run(tier)
    save(checkpoints, 3)
    checkpoints.close()
    assert sorted(contents(tier)["step-00000003"]) == [FILE_NAME, "rank-00000.objects.json", "rank-00000.safetensors"]


def test_nothing_is_overwritten(tier: Tier, open_run: Open, tmp_path: Path) -> None:
    with open_run(tier) as checkpoints:
        save(checkpoints, 4)
    before = contents(tier)
    checkpoints = open_run(tier, directory=tmp_path / "other")
    taken = checkpoints.checkpoint(4, filled(44))
    with pytest.raises(ReplicationError, match=r"step-00000004 is there already with other content"):
        taken.replicated.result(60)
    assert taken.durable.result() == tmp_path / "other" / "step-00000004"  # whole where it was published
    checkpoints.close()
    assert contents(tier) == before


def test_the_same_content_is_not_sent_twice(tier: Tier, open_run: Open) -> None:
    with open_run(tier) as checkpoints:
        save(checkpoints, 4)
    with open_run(tier) as checkpoints:
        checkpoints.restore(filled(0))
    assert checkpoints.stats().num_replicated == 1
    assert checkpoints.stats().bytes_replicated_total == 0


def test_two_jobs_with_one_tier(tier: Tier, open_run: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The one that began last writes; the other is told, and harms nothing."""
    first, second = open_run(tier), open_run(copy(tier, keep_last=1), directory=tmp_path / "other")
    save(first, 1)
    save(second, 2)
    with pytest.raises(ReplicationError, match=r"is written by \S+ pid \d+ since; end that job"):
        save(first, 3)
    assert "is written by" in caplog.text
    assert first.stats().num_replications_failed == 1
    save(second, 4)
    second.close()
    assert list(contents(tier)) == ["step-00000004"]


def test_local_damage_is_not_copied(tier: Tier, open_run: Open, tmp_path: Path) -> None:
    with open_run(None) as checkpoints:
        checkpoints.checkpoint(7, filled(7)).durable.result(60)
    flip(tmp_path / "run" / "step-00000007" / "rank-00000.safetensors")
    store, path, pace = open_store(tier), tmp_path / "run" / "step-00000007", Pace(None, 0)
    with pytest.raises(DamagedCheckpointError, match=r"rank-00000\.safetensors: checksum mismatch in bytes \[4096, "):
        upload(store, path, 7, shelf=Shelf(store, store.get, 1 << 20), pace=pace, threads=2, part_bytes=1 << 20)
    assert complete_steps(open_store(tier).listing()) == []


def flip(path: Path, at: int = -9) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def corrupt(tier: Tier, name: str) -> None:
    """Flip a byte of a file in a tier, behind everybody's back."""
    store = open_store(tier)
    content = bytearray(store.get(name))
    content[-9] ^= 1
    store.put(name, bytes(content))


def test_restore_falls_back_across_tiers(
    tier: Tier, open_run: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Step 3 is damaged everywhere, step 2 here but not in the tier: step 2 it is, and the directory is mended."""
    with open_run(tier, keep_last=None) as checkpoints:
        save(checkpoints, 1, 2, 3)
    for step in (2, 3):
        flip(tmp_path / "run" / f"step-0000000{step}" / "rank-00000.safetensors")
    corrupt(tier, "step-00000003/rank-00000.safetensors")
    checkpoints = open_run(tier, keep_last=None)
    state = filled(0)
    assert checkpoints.restore(state) == 3
    assert state["python"] == {"value": 2}
    assert caplog.text.count("falling back") == 3
    assert any(path.name.startswith("damaged-step-00000002") for path in (tmp_path / "run").iterdir())
    assert save(checkpoints, 3) == [f"{tier.url}/step-00000003"]  # the damaged copy makes way
    checkpoints.close()
    shutil.rmtree(tmp_path / "run")
    assert open_run(tier).restore(state) == 4


def test_an_older_local_one_is_better_than_damage_in_the_tier(tier: Tier, open_run: Open, tmp_path: Path) -> None:
    with open_run(tier, keep_last=None) as checkpoints:
        save(checkpoints, 1, 2)
    shutil.rmtree(tmp_path / "run" / "step-00000002")
    corrupt(tier, f"step-00000002/{FILE_NAME}")
    checkpoints = open_run(tier)
    assert checkpoints.latest() == tmp_path / "run" / "step-00000001"
    assert checkpoints.restore(filled(0)) == 2


def test_the_local_one_is_taken_when_both_are_whole(tier: Tier, open_run: Open, tmp_path: Path) -> None:
    with open_run(tier) as checkpoints:
        save(checkpoints, 1)
    corrupt(tier, "step-00000001/rank-00000.safetensors")
    assert open_run(tier).restore(filled(0)) == 2


def test_too_little_space_is_an_error_and_not_an_older_checkpoint(
    tier: Tier, open_run: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_run(tier, keep_last=None) as checkpoints:
        save(checkpoints, 1, 2)
    shutil.rmtree(tmp_path / "run" / "step-00000002")
    monkeypatch.setattr("datastates.tiers.fetch.free_bytes", lambda path: 1000)
    with pytest.raises(Exception, match=r"0 MB free, .*step-00000002 takes 0 MB") as caught:
        open_run(tier).restore(filled(0))
    assert type(caught.value).__name__ == "StorageFullError"


def test_while_one_is_copied_only_the_newest_waits_and_neither_is_pruned(
    open_run: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, begun = threading.Event(), threading.Event()
    upload = replicator.upload

    def held(*args: Any, **options: Any) -> Any:
        begun.set()
        go_on.wait(60)
        return upload(*args, **options)

    monkeypatch.setattr(replicator, "upload", held)
    checkpoints = open_run(tmp_path / "second", keep_last=1)
    taken = [checkpoints.checkpoint(0, filled(0))]
    begun.wait(60)
    taken += [checkpoints.checkpoint(step, filled(step)) for step in (1, 2, 3)]
    checkpoints.wait()
    assert [one.replicated.result(60) for one in taken[1:3]] == [None, None]  # a newer one came first
    assert [taken[0].replicated.done(), taken[3].replicated.done()] == [False, False]
    checkpoints.checkpoint(4, filled(4)).durable.result(60)
    assert taken[3].replicated.result(60) is None
    checkpoints.wait()
    local = sorted(path.name for path in (tmp_path / "run").glob("step-*"))
    assert local[0] == "step-00000000"
    assert local[-1] == "step-00000004"
    go_on.set()
    assert taken[0].replicated.result(60) is not None
    checkpoints.close()
    assert complete_steps(open_store(Tier(tmp_path / "second")).listing()) == [0, 4]


def test_several_tiers_each_take_it(open_run: Open, tmp_path: Path) -> None:
    checkpoints = open_run([tmp_path / "second", Tier(f"memory://{tmp_path.name}/third", every=2)])
    urls = save(checkpoints, 0, 1)
    assert urls == [f"memory://{tmp_path.name}/third/step-00000000", str(tmp_path / "second" / "step-00000001")]
    assert checkpoints.stats().num_replicated == 3


def test_a_directory_as_a_tier_is_a_directory_of_checkpoints(open_run: Open, tmp_path: Path) -> None:
    save(open_run(f"file://{tmp_path}/second"), 6)
    with Checkpointer(tmp_path / "second") as checkpoints:
        assert checkpoints.restore(filled(0)) == 7


def test_a_tier_that_does_not_answer(open_run: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody begins from nothing because of it; what is here can be gone on with."""
    silent = Tier("s3://bucket/run", retry_for_s=0, storage_options={"endpoint_url": "http://127.0.0.1:1", "key": "k"})
    silent.storage_options["secret"] = "s"  # type: ignore[index]
    with pytest.raises(Exception, match=r"s3://bucket/run does not say what it has .*, and .*run has no checkpoint"):
        open_run(silent).restore(filled(0))
    checkpoints = open_run(silent, directory=tmp_path / "other")
    taken = checkpoints.checkpoint(1, filled(1))
    with pytest.raises(ReplicationError, match=r"step 1 was not copied to s3://bucket/run: EndpointConnectionError"):
        taken.replicated.result(60)
    assert "was not copied" in caplog.text
    assert checkpoints.restore(filled(0)) == 2
    assert "only what other places have can be restored" in caplog.text


def test_a_failed_checkpoint_is_not_replicated(open_run: Open, tmp_path: Path) -> None:
    checkpoints = open_run(tmp_path / "second")
    save(checkpoints, 1)
    again = checkpoints.checkpoint(1, filled(2))
    assert again.replicated.exception(60) is again.durable.exception(60) is not None


def test_without_tiers_replicated_is_none(open_run: Open) -> None:
    assert save(open_run(None), 1) == [None]


def test_the_directory_itself_is_no_tier(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="where the checkpoints are already"):
        Checkpointer(tmp_path / "run", replicate_to=f"file://{tmp_path}/other/../run")


def test_a_copy_that_lost_a_file_is_made_again(tier: Tier, open_run: Open) -> None:
    with open_run(tier) as checkpoints:
        save(checkpoints, 4)
    open_store(tier).drop("step-00000004/rank-00000.safetensors")
    with open_run(tier) as checkpoints:
        checkpoints.restore(filled(0))
    assert checkpoints.stats().bytes_replicated_total > 16384
    assert "rank-00000.safetensors" in contents(tier)["step-00000004"]


def test_the_extra_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(ImportError, match=r"needs fsspec, .*pip install 'elastates\[remote\]'"):
        Checkpointer(tmp_path, replicate_to="s3://bucket/run")


def test_a_missing_protocol_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(ImportError, match=r"the tier s3://bucket/run needs a package .*s3fs"):
        Checkpointer(tmp_path, replicate_to="s3://bucket/run")


def test_leaving_is_pure_and_keeps_the_verified_one() -> None:
    whole = {FILE_NAME: 1}
    listing = {f"step-{step:08d}": whole for step in (1, 2, 3, 9)} | {"step-00000004": {"a": 1}, "": {"writer.json": 1}}
    tier = Tier("x", keep_last=1)
    assert leaving(listing, tier, 2, set()) == ["step-00000001", "step-00000003", "step-00000004"]
    assert leaving(listing, tier, 3, {9}) == ["step-00000001", "step-00000002", "step-00000004"]
    assert leaving(listing, Tier("x", keep_last=None), 3, ()) == ["step-00000004"]


def test_journal_names_whose_bytes_they_are(tmp_path: Path) -> None:
    """A resumed upload skips a file only if the journal is of the same manifest and the size is right."""
    store, pace = open_store(Tier(tmp_path)), Pace(None, 0)
    raw = b'{..."digest":"sha256:' + b"a" * 64 + b'"}\n'
    said = {"manifest": "a" * 64, "complete": {"one": 3, "two": 9}}
    folder = store.staging("step-00000001")
    store.put(f"{folder}/{JOURNAL}", json.dumps(said).encode())
    store.put(f"{folder}/one", b"123")
    store.put(f"{folder}/two", b"123")
    assert Journal.resume(store, folder, raw, store.listing(), pace).complete == {"one": 3}
    assert Journal.resume(store, folder, raw.replace(b"a" * 64, b"b" * 64), store.listing(), pace).complete == {}
    assert list(store.listing()[folder]) == [JOURNAL]
