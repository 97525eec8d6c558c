"""The checkpoint that hostile hands write to."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from hostile import Target


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return Target(tmp_path_factory.mktemp("hostile"))
