"""The Promela models of the protocol, searched by Spin: no error with all rules, a counter-example without any one."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INSTALL = "apt-get install spin"
RULES = {
    "agree": ("WRITTEN", "PROOF", "MAJORITY", "ADOPT", "PROMISES", "FENCE"),
    "edit": ("REVOKE", "EPOCHS", "KEEPING", "WELCOME"),
}
VARIANTS = [(model, rule) for model, rules in RULES.items() for rule in rules]

pytestmark = pytest.mark.skipif(
    not (shutil.which("spin") and shutil.which("gcc")), reason=f"needs Spin and a C compiler: {INSTALL} gcc"
)


def search(model: str, scratch: Path, rule: str | None = None) -> str:
    """Everything that Spin says about all that can happen in a model."""
    without = [f"-DWITHOUT_{rule}"] if rule else []
    run(["spin", "-a", *without, HERE / f"{model}.pml"], scratch)
    run(["gcc", "-O2", "-w", "-DSAFETY", "-DCOLLAPSE", "-o", "pan", "pan.c"], scratch)
    return run(["./pan", "-m100000"], scratch)


def run(command: list[str | Path], scratch: Path) -> str:
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


def errors(said: str) -> int:
    found = re.search(r"errors: (\d+)", said)
    assert found, said
    return int(found[1])


@pytest.mark.parametrize("model", RULES)
def test_nothing_goes_wrong_with_all_rules(model: str, tmp_path: Path) -> None:
    said = search(model, tmp_path)
    assert errors(said) == 0, said
    assert "Search not completed" not in said


@pytest.mark.parametrize(("model", "rule"), VARIANTS)
def test_every_rule_is_needed(model: str, rule: str, tmp_path: Path) -> None:
    said = search(model, tmp_path, rule)
    assert errors(said) == 1, said
