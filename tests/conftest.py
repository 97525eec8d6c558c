"""Fixtures for every test: free ports, and real processes that do not outlive their test."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import Launcher
from skips import SkipPolice

# Benchmarks and examples are not installed. Last, so that what is installed is what is tested.
sys.path.append(str(Path(__file__).parents[1]))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--expect-no-skips``."""
    parser.addoption(
        "--expect-no-skips",
        action="store_true",
        help="fail if a test without an excuse (tests/support/skips.py) was skipped",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Watch for skips if asked to."""
    if config.getoption("--expect-no-skips"):
        config.pluginmanager.register(SkipPolice())


@pytest.fixture
def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launcher]:
    """Start processes in ``tmp_path``; what still runs when the test ends is killed, what they printed is shown."""
    launcher = Launcher(cwd=tmp_path)
    yield launcher
    launcher.close()
