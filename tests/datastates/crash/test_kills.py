"""SIGKILL before operations of real processes; ``benchmarks/faults.py`` kills before every one."""

from pathlib import Path

from benchmarks.crash.kills import kill_everywhere


def test_a_job_killed_anywhere_goes_on(tmp_path: Path) -> None:
    killed = kill_everywhere(tmp_path / "killed", stride=17)
    assert killed.problems == []
    assert killed.crash_points >= 12
