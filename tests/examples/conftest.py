"""What the tests of the examples share."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))  # where they import each other from when they run


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A small text of several files, out of order and in a subdirectory."""
    directory = tmp_path / "text"
    (directory / "inner").mkdir(parents=True)
    words = np.random.Generator(np.random.Philox(7)).integers(97, 123, size=(3, 20_000), dtype=np.uint8)
    for name, letters in zip(("b.txt", "inner/c.txt", "a.txt"), words, strict=True):
        (directory / name).write_bytes(letters.tobytes())
    return directory
