"""Manifests with sources: what they say comes back, and what contradicts itself is refused."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from datastates.errors import DamagedCheckpointError
from datastates.loading import Run, by_holder
from datastates.manifest import DataFile, Manifest, ObjectsFile, Shard, TensorInfo, dump, load
from oneflow_sbp import Box

DELTA, OLDER, OLDEST = "rank-00000.safetensors.delta", "rank-00000.from-step-00000002.base", "older.base"


def data_file(extent_sources: list[int] | None = None) -> DataFile:
    """Five extents of 4096 bytes behind a header of one block."""
    return DataFile(
        name=DELTA,
        size_bytes=6 * 4096,
        header_bytes=4096,
        header_crc32c=1,
        extent_ends=np.arange(2, 7, dtype=np.uint64) * np.uint64(4096),
        extent_crc32c=np.arange(5, dtype=np.uint32),
        sources=() if extent_sources is None else (OLDER, OLDEST),
        extent_sources=None if extent_sources is None else np.array(extent_sources, dtype=np.uint32),
    )


def manifest(file: DataFile) -> Manifest:
    box = Box.whole((20480,))
    tensors = {"w": TensorInfo("uint8", box.sizes, (Shard(0, 4096, 6 * 4096, box),))}
    return Manifest(3, 1, tensors, (file,), (ObjectsFile("rank-00000.objects.json", 2, 0),))


def signed(data: dict[str, Any]) -> bytes:
    body = json.dumps({k: v for k, v in data.items() if k != "digest"}, separators=(",", ":"))[:-1].encode()
    return body + b',"digest":"sha256:%s"}\n' % hashlib.sha256(body).hexdigest().encode()


def test_sources_come_back_and_make_it_version_two() -> None:
    raw = dump(manifest(data_file([1, 1, 0, 2, 2])))
    written = json.loads(raw)
    assert written["format_version"] == 2
    assert written["files"][0]["extent_sources"] == [[1, 2], [0, 1], [2, 2]]
    (file,) = load(raw, "m").files
    assert file.names == (DELTA, OLDER, OLDEST)
    assert [file.holder(extent) for extent in range(5)] == [OLDER, OLDER, DELTA, OLDEST, OLDEST]


def test_without_sources_nothing_changes_for_older_readers() -> None:
    written = json.loads(dump(manifest(data_file())))
    assert written["format_version"] == 1
    assert {"sources", "extent_sources"}.isdisjoint(written["files"][0])


def file_of(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = data["files"][0]
    return found


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "version one": (lambda d: d.update(format_version=1), "format version 1 has no sources"),
    "newer": (lambda d: d.update(format_version=3), "upgrade elastates"),
    "outside": (lambda d: file_of(d).update(sources=["../x", "y"]), "'../x' is not a plain file name"),
    "hidden": (lambda d: file_of(d).update(sources=[".tmp", "y"]), "is not a plain file name"),
    "itself": (lambda d: file_of(d).update(sources=[DELTA, "y"]), "two files have one name"),
    "twice": (lambda d: file_of(d).update(sources=["y", "y"]), "two files have one name"),
    "objects": (lambda d: file_of(d).update(sources=["rank-00000.objects.json", "y"]), "two files have one name"),
    "too few": (lambda d: file_of(d).update(extent_sources=[[0, 4]]), "not as many as its extents"),
    "too many": (lambda d: file_of(d).update(extent_sources=[[0, 1 << 62]]), "not as many as its extents"),
    "no such source": (lambda d: file_of(d).update(extent_sources=[[3, 5]]), "name more than its 2 sources"),
    "negative": (lambda d: file_of(d).update(extent_sources=[[-1, 5]]), "is not a count"),
    "negative count": (lambda d: file_of(d).update(extent_sources=[[0, 6], [0, -1]]), "is not a count"),
    "fraction": (lambda d: file_of(d).update(extent_sources=[[0, 5.0]]), "is not a count"),
    "no runs": (lambda d: file_of(d).pop("extent_sources"), "extent_sources"),
    "no pairs": (lambda d: file_of(d).update(extent_sources=[5]), "int"),
    "no names": (lambda d: file_of(d).update(sources=3), "int"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_list_of_sources_is_refused(case: str) -> None:
    data = json.loads(dump(manifest(data_file([1, 1, 0, 2, 2]))))
    alter, said = HOSTILE[case]
    alter(data)
    with pytest.raises(DamagedCheckpointError, match=said):
        load(signed(data), "m")


def test_runs_are_cut_where_the_holder_changes() -> None:
    target = torch.empty(20480, dtype=torch.uint8)
    runs = [Run(0, 5000, 13000, target, 7), Run(0, 13000, 24576, target, 9000)]
    found = by_holder(data_file([1, 1, 0, 2, 0]), runs)
    spans = {name: [(run.begin, run.end, run.offset) for run in part] for name, part in found.items()}
    assert spans == {
        OLDER: [(5000, 12288, 7)],
        DELTA: [(12288, 13000, 7 + 7288), (13000, 16384, 9000), (20480, 24576, 9000 + 7480)],
        OLDEST: [(16384, 20480, 9000 + 3384)],
    }
    assert by_holder(data_file(), runs) == {DELTA: runs}
