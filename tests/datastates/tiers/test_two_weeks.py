"""The simulation of ``benchmarks/two_weeks.py``, shorter."""

from pathlib import Path

import pytest

from benchmarks import two_weeks


@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_nothing_grows_and_something_is_always_whole(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two_weeks, "SAVES_A_DAY", 6)
    monkeypatch.setattr(two_weeks, "DAYS_A_MACHINE", 2)
    with two_weeks.tier_of(kind, tmp_path) as (tier, files):
        plan = two_weeks.Plan(
            tmp_path / "run", tier, files, saves=24, size_mb=1.0, options={"keep_last": 2, "full_every": 4}
        )
        report = two_weeks.simulate(plan)
    assert (report["saves"], report["replicated"] >= 24, report["failed"]) == (24, True, 0)
    assert (report["wrong_bytes"], report["restores"]) == (0, 3)
    assert report["restored"] >= 4
    assert report["verified_min"] >= 1
    assert report["verified_min_in_tier"] >= 1
    assert report["verifying_passes"] >= 5
    assert report["disk_mb_last"] <= 1.5 * report["disk_mb_first"]
    assert report["num_fds_last"] <= report["num_fds_first"] + 8
    assert report["num_threads_last"] <= report["num_threads_first"] + 8
    assert report["rss_mb_last"] <= report["rss_mb_first"] + 50
