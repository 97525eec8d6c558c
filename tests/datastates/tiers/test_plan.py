"""What travels together: pieces tile files, carry every checksum, and are cut alike every time."""

import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datastates import Checkpointer, Tier
from datastates.directory import read_manifest
from datastates.storage_ops import PieceFile
from datastates.tiers.config import tiers_of
from datastates.tiers.plan import Check, FilePlan, Piece, _plan, damaged, plan_files
from datastates.tiers.stores.base import read_runs, write_runs

import _elastates


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50)), min_size=1, max_size=40),
    st.integers(1, 200),
)
def test_pieces_hold_every_check_once_in_order(holes_and_sizes: list[tuple[int, int]], part_bytes: int) -> None:
    checks, at = [], 0
    for hole, size in holes_and_sizes:
        checks.append(Check(at + hole, at + hole + size, 0))
        at += hole + size
    plan = _plan("file", at + 7, checks, part_bytes)
    assert [check for piece in plan.pieces for check in piece.checks] == checks
    stored = 0
    for piece in plan.pieces:
        assert piece.offset_bytes == stored
        assert sum(end - begin for begin, end in piece.runs()) == piece.size_bytes
        stored += piece.size_bytes
    assert plan.stored_bytes == stored == sum(size for _, size in holes_and_sizes)
    assert all(part_bytes <= piece.size_bytes < part_bytes + 50 for piece in plan.pieces[:-1])


@given(st.data())
def test_runs_are_written_where_they_were_read(data: st.DataObject) -> None:
    content = data.draw(st.binary(min_size=40, max_size=40))
    edges = sorted(data.draw(st.sets(st.integers(0, 40), min_size=2, max_size=8)))
    piece = Piece(tuple(Check(b, e, _elastates.crc32c(content[b:e])) for b, e in list(pairwise(edges))[::2]), 0)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "from").write_bytes(content)
        read = read_runs(Path(scratch) / "from", piece)
        assert damaged(piece, read) == []
        write_runs(PieceFile(Path(scratch) / "to"), piece, read)
        assert read_runs(Path(scratch) / "to", piece) == read


def test_a_large_file_has_no_more_pieces_than_s3_has_parts() -> None:
    checks = [Check(i, i + 1, 0) for i in range(30_000)]
    assert len(_plan("file", 30_000, checks, 1).pieces) <= 9_000


def test_every_byte_of_every_file_is_checked(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpoints:
        state = {"a": torch.randn(1000, 700), "b": torch.randn(7), "python": {"x": 1}}
        path = checkpoints.checkpoint(3, state).durable.result(60)
    files = plan_files(read_manifest(path), 1 << 20)
    assert {file.name: file.size_bytes for file in files} == {
        entry.name: entry.stat().st_size for entry in path.iterdir() if entry.name != "manifest.json"
    }
    for file in files:
        assert_checked(file, (path / file.name).read_bytes())


def assert_checked(file: FilePlan, content: bytes) -> None:
    for piece in file.pieces:
        ((begin, end),) = piece.runs()
        part = content[begin:end]
        assert damaged(piece, part) == []
        for at in (0, len(part) // 2, len(part) - 1):
            flipped = bytearray(part)
            flipped[at] ^= 1
            (bad,) = damaged(piece, bytes(flipped))
            assert bad.begin <= begin + at < bad.end
        assert damaged(piece, part[:-1]) == list(piece.checks)
        assert all(c.crc32c == _elastates.crc32c(content[c.begin : c.end]) for c in piece.checks)


def test_tiers_are_declared_in_many_ways(tmp_path: Path) -> None:
    assert tiers_of(None) == ()
    assert tiers_of("s3://bucket/run") == (Tier("s3://bucket/run"),)
    assert tiers_of(tmp_path) == (Tier(str(tmp_path)),)
    assert tiers_of([{"url": "/second", "keep_last": 5}, "s3://b"]) == (Tier("/second", keep_last=5), Tier("s3://b"))


@pytest.mark.parametrize(
    ("value", "error", "told"),
    [
        (3, TypeError, "replicate_to is 3, expected a URL, a Tier, or a list of those"),
        ([3], TypeError, "a tier is 3, expected a URL, a path or a datastates.Tier"),
        ({"url": "a", "evry": 2}, TypeError, "unknown field evry of a tier; known are url, every, keep_last"),
        (["a", "a"], ValueError, "names a tier twice"),
        ({"url": ""}, ValueError, "expected a path or a URL"),
        ({"url": "a", "every": 0}, ValueError, "every of tier a is 0, expected at least 1"),
        ({"url": "a", "bandwidth_mb_s": 0}, ValueError, "bandwidth_mb_s of tier a is 0, expected more than 0"),
        ({"url": "a", "part_mb": 5}, ValueError, "part_mb of tier a is 5, expected at least 5.25"),
        ({"url": "a", "threads": 0}, ValueError, "threads of tier a is 0"),
        ({"url": "a", "retry_for_s": float("nan")}, ValueError, "retry_for_s of tier a is nan"),
    ],
)
def test_a_bad_tier_is_refused(value: object, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        tiers_of(value)


def test_credentials_are_not_shown() -> None:
    assert "secret" not in repr(Tier("s3://bucket", storage_options={"secret": "secret"}))
