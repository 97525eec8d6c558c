"""Makes the conformance suite importable; its asserts are to be explained like those of the tests that inherit it."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
pytest.register_assert_rewrite("conformance")
