"""A bit flipped, a file cut or grown: noticed in every kind of file, and named; ``benchmarks/faults.py`` does more."""

from pathlib import Path

from benchmarks.crash.flips import KINDS, damage


def test_damage_of_every_file_is_noticed_and_named(two_rank_checkpoint: Path, tmp_path: Path) -> None:
    found = damage(two_rank_checkpoint, tmp_path, flips_per_kind=50)
    assert found.problems == []
    assert found.bit_flips == dict.fromkeys(KINDS, 50)
    assert found.truncations >= 60
