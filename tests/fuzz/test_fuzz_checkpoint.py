"""A few seconds of coverage-guided fuzzing; run the target by hand for longer."""

import re
import sys
from pathlib import Path

import pytest
from launching import Launcher

pytest.importorskip("atheris", reason="pip install atheris")
SECONDS = 4


def test_the_fuzzer_finds_nothing_in_a_few_seconds(launch: Launcher, tmp_path: Path) -> None:
    script = Path(__file__).with_name("fuzz_checkpoint.py")
    fuzzer = launch(
        [sys.executable, "-P", script, tmp_path / "scratch", f"-max_total_time={SECONDS}", "-rss_limit_mb=4096"]
    )
    fuzzer.wait(timeout_s=100)
    done = re.search(r"Done (\d+) runs", fuzzer.output)
    assert done
    assert int(done[1]) > 100
