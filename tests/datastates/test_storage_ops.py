"""File operations through the native layer: what they do, how they fail, and that they are recorded."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from datastates import storage_ops

import _elastates


@pytest.fixture
def recording() -> Iterator[Callable[[], list[tuple[str, str]]]]:
    """What has been done since the test began: (operation, name of its file)."""
    _elastates.start_recording()
    yield lambda: [(done["op"], Path(done["path"]).name) for done in _elastates.take_recording()]
    _elastates.stop_recording()


def test_a_tree_is_made_linked_renamed_and_removed(
    tmp_path: Path, recording: Callable[[], list[tuple[str, str]]]
) -> None:
    storage_ops.make_directories(tmp_path / "a" / "b")
    storage_ops.make_directories(tmp_path / "a" / "b")
    storage_ops.write_synced(tmp_path / "a" / "b" / "file", b"content")
    storage_ops.link(tmp_path / "a" / "b" / "file", tmp_path / "a" / "second")
    storage_ops.rename(tmp_path / "a" / "second", tmp_path / "a" / "third")
    storage_ops.rename_no_replace(tmp_path / "a", tmp_path / "c")
    storage_ops.sync_directory(tmp_path)
    assert (tmp_path / "c" / "third").read_bytes() == b"content"
    assert (tmp_path / "c" / "third").samefile(tmp_path / "c" / "b" / "file")
    storage_ops.unlink(tmp_path / "c" / "third")
    storage_ops.remove_tree(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []
    assert recording() == [
        ("mkdir", "a"),
        ("mkdir", "b"),
        ("create", "file"),
        ("write", "file"),
        ("fsync", "file"),
        ("link", "file"),
        ("rename", "second"),
        ("rename", "a"),
        ("fsync_directory", tmp_path.name),
        ("unlink", "third"),
        ("unlink", "file"),
        ("rmdir", "b"),
        ("rmdir", "c"),
    ]


def test_a_recorded_write_has_its_bytes_and_a_mark_its_text(tmp_path: Path, recording: object) -> None:
    storage_ops.write_synced(tmp_path / "file", b"content")
    _elastates.record_mark("a note")
    create, write, fsync, mark = _elastates.take_recording()
    assert (write["data"], write["offset"], write["size_bytes"], write["result"]) == (b"content", 0, 7, 7)
    assert (mark["op"], mark["path"]) == ("mark", "a note")
    times = [done[key] for done in (create, write, fsync) for key in ("began_ns", "ended_ns")]
    assert times == sorted(set(times))


def test_removing_a_tree_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"kept")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "outside")
    storage_ops.remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
    assert (tmp_path / "outside" / "file").read_bytes() == b"kept"


@pytest.mark.parametrize(
    ("act", "kind", "says"),
    [
        (lambda p: storage_ops.write_synced(p / "here", b""), FileExistsError, "creating .*here: File exists"),
        (lambda p: storage_ops.rename_no_replace(p / "here", p / "dir"), FileExistsError, "renaming .*here to .*dir"),
        (lambda p: storage_ops.make_directory(p / "dir"), FileExistsError, "making .*dir"),
        (lambda p: storage_ops.make_directories(p / "here" / "sub"), NotADirectoryError, "making .*here/sub"),
        (lambda p: storage_ops.unlink(p / "none"), FileNotFoundError, "removing .*none"),
        (lambda p: storage_ops.link(p / "none", p / "x"), FileNotFoundError, "linking .*none to .*x"),
        (lambda p: storage_ops.rename(p / "none", p / "x"), FileNotFoundError, "renaming .*none to .*x"),
        (lambda p: storage_ops.sync_directory(p / "none"), FileNotFoundError, "directory .*none"),
        (lambda p: storage_ops.open_or_create(p / "dir"), IsADirectoryError, "creating .*dir"),
    ],
)
def test_failures_are_the_system_s_own_and_say_what_was_attempted(
    tmp_path: Path, act: Callable[[Path], object], kind: type[OSError], says: str
) -> None:
    (tmp_path / "here").write_bytes(b"")
    (tmp_path / "dir").mkdir()
    with pytest.raises(kind, match=says):
        act(tmp_path)


FAULTY: dict[str, Callable[[Path], object]] = {
    "small_open": lambda p: storage_ops.write_synced(p / "new", b"x"),
    "small_write": lambda p: storage_ops.write_synced(p / "new", b"x"),
    "small_fsync": lambda p: storage_ops.write_synced(p / "new", b"x"),
    "mkdir": lambda p: storage_ops.make_directory(p / "new"),
    "rename": lambda p: storage_ops.rename(p / "here", p / "new"),
    "link": lambda p: storage_ops.link(p / "here", p / "new"),
    "unlink": lambda p: storage_ops.unlink(p / "here"),
    "rmdir": lambda p: storage_ops.remove_directory(p / "dir"),
    "fsync": lambda p: storage_ops.sync_directory(p),
}


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("operation", FAULTY)
def test_every_operation_takes_an_injected_fault(tmp_path: Path, operation: str, error: int) -> None:
    (tmp_path / "here").write_bytes(b"")
    (tmp_path / "dir").mkdir()
    _elastates.set_fault(operation, error=error)
    with pytest.raises(OSError, match=os.strerror(error)) as raised:
        FAULTY[operation](tmp_path)
    assert raised.value.errno == error


def test_short_and_interrupted_writes_are_continued(tmp_path: Path) -> None:
    _elastates.set_fault("small_write", times=5, short_by=90)
    storage_ops.write_synced(tmp_path / "short", b"0123456789" * 10)
    _elastates.set_fault("small_write", times=3, error=errno.EINTR)
    storage_ops.write_synced(tmp_path / "interrupted", b"0123456789" * 10)
    for name in ("short", "interrupted"):
        assert (tmp_path / name).read_bytes() == b"0123456789" * 10


def test_a_file_is_written_piece_by_piece(tmp_path: Path, recording: Callable[[], list[tuple[str, str]]]) -> None:
    file = storage_ops.PieceFile(tmp_path / "file")
    file.write(memoryview(b"-second")[1:], 5)
    file.write(bytearray(b"first"), 0)
    file.set_length(20)
    storage_ops.sync_file(file)
    assert (tmp_path / "file").read_bytes() == b"firstsecond" + bytes(9)
    assert [op for op, _ in recording()] == ["create", "write", "write", "ftruncate", "fsync"]
    storage_ops.PieceFile(tmp_path / "file").write(b"F", 0)  # goes on with it
    assert (tmp_path / "file").read_bytes()[:5] == b"First"


@pytest.mark.parametrize(
    ("operation", "act"),
    [
        ("small_write", lambda file: file.write(b"x", 0)),
        ("small_ftruncate", lambda file: file.set_length(9)),
        ("small_fsync", storage_ops.sync_file),
    ],
)
def test_a_piece_that_cannot_be_written_is_an_error_with_its_file(
    tmp_path: Path, operation: str, act: Callable[[storage_ops.PieceFile], None]
) -> None:
    file = storage_ops.PieceFile(tmp_path / "file")
    _elastates.set_fault(operation, error=errno.EIO)
    with pytest.raises(OSError, match=r"\w+ing .*/file: Input/output error"):
        act(file)


def test_who_is_left_behind_writes_to_that_file_and_to_no_other(tmp_path: Path) -> None:
    """The descriptor's number must not become another file's while somebody may still write."""
    write = storage_ops.PieceFile(tmp_path / "file").write
    with open(tmp_path / "other", "wb"):
        write(b"late", 0)
    assert (tmp_path / "other").read_bytes() == b""
    assert (tmp_path / "file").read_bytes() == b"late"
    del write
    targets = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    assert str(tmp_path / "file") not in targets


def test_the_way_to_a_directory_is_synced_up_to_what_we_may_open(
    tmp_path: Path, recording: Callable[[], list[tuple[str, str]]]
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    _elastates.set_fault("open", nth=3, error=errno.EACCES)
    storage_ops.sync_ancestors(tmp_path / "a" / "b")
    assert recording() == [("fsync_directory", "a"), ("fsync_directory", tmp_path.name)]
