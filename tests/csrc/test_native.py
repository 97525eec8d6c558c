"""Builds the native tests without sanitizers and runs each as one test; `make sanitize` runs them with."""

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROGRAMS = sorted(path.stem for path in HERE.glob("*_test.cc"))


@pytest.fixture(scope="session")
def program_dir() -> Path:
    """Where the programs lie, built and up to date."""
    built = subprocess.run(
        ["make", "-C", HERE, "-j2", "FLAVOUR=plain"], capture_output=True, text=True, check=False, timeout=900
    )
    assert built.returncode == 0, f"the native tests do not build:\n{built.stdout}\n{built.stderr}"
    return HERE.parents[1] / "build" / "native-tests" / "plain"


@pytest.mark.timeout(1200)  # the first one waits for the build
@pytest.mark.parametrize("program", PROGRAMS)
def test_native_program_passes(program: str, program_dir: Path) -> None:
    ended = subprocess.run([program_dir / program], capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, f"{program} failed:\n{ended.stdout}\n{ended.stderr}"
    assert " 0 failed" in ended.stdout
