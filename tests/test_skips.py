"""The plugin behind ``--expect-no-skips``: which skips it fails a run for."""

from pathlib import Path

import pytest
from launching import Launcher

CONFTEST = """
from skips import SkipPolice
def pytest_configure(config):
    config.pluginmanager.register(SkipPolice())
    config.addinivalue_line("markers", "gpu: needs a CUDA device")
"""


@pytest.mark.parametrize(
    ("test", "expected_status"),
    [
        ("def test_it(): assert True", 0),
        ("@pytest.mark.skip(reason='not today')\ndef test_it(): assert False", 1),
        ("def test_it(): pytest.skip('not today')", 1),
        ("@pytest.mark.gpu\ndef test_it(): pytest.skip('no device')", 0),
        ("pytest.importorskip('not_a_module')\ndef test_it(): assert False", 1),
        ("@pytest.mark.xfail(strict=True)\ndef test_it(): assert False", 0),
    ],
    ids=["no skip", "skip marker", "skip call", "excused", "whole module", "expected failure"],
)
def test_exit_status(launch: Launcher, tmp_path: Path, test: str, expected_status: int) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    # One test that passes keeps pytest from calling a wholly skipped run empty.
    (tmp_path / "test_it.py").write_text(f"import pytest\n{test}\n")
    (tmp_path / "test_other.py").write_text("def test_other(): assert True\n")
    env = {"PYTHONPATH": Path(__file__).parent / "support", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    options = ["-p", "no:cacheprovider", "--rootdir", tmp_path, "-c", "/dev/null"]
    launched = launch.python("-m", "pytest", *options, tmp_path / "test_it.py", tmp_path / "test_other.py", env=env)
    launched.wait(expect=expected_status)
    assert ("UNEXPECTED SKIPS" in launched.output) == (expected_status == 1)
