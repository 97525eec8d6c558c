"""The distribution: what building says without torch, which layer imports which, what the build reports."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import _elastates

ROOT = Path(__file__).parents[1]

# Each layer, and those below it that it may import.
LAYERS = {
    "elaswave": {"elaswave", "datastates", "oneflow_sbp", "_elastates"},
    "datastates": {"datastates", "oneflow_sbp", "_elastates"},
    "oneflow_sbp": {"oneflow_sbp", "_elastates"},
}
OURS = LAYERS.keys() | {"_elastates", "examples", "benchmarks", "tests"}


def imported_packages(source: str) -> set[str]:
    """The top-level names that a module imports absolutely, at any depth of its code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_imported_packages_sees_every_form() -> None:
    source = "import a.b, c\nfrom d.e import f\nfrom . import g\ndef h():\n    import i\n"
    assert imported_packages(source) == {"a", "c", "d", "i"}


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_import_downwards_only(layer: str) -> None:
    modules = sorted((ROOT / layer).rglob("*.py"))
    assert modules
    for module in modules:
        upward = imported_packages(module.read_text()) & OURS - LAYERS[layer]
        assert not upward, f"{module.relative_to(ROOT)} imports {sorted(upward)}, which is not below {layer}"


@pytest.mark.parametrize("part", ["actor", "arena", "base", "comm", "copy", "engine", "storage"])
def test_only_the_bindings_include_torch(part: str) -> None:
    sources = [path for path in (ROOT / "csrc" / part).rglob("*") if path.suffix in {".h", ".cc", ".cu"}]
    assert sources
    for source in sources:
        foreign = [
            header for header in ("torch/", "ATen/", "c10/", "pybind11/", "Python.h") if header in includes(source)
        ]
        assert not foreign, f"{source.relative_to(ROOT)} includes {foreign}"


def includes(source: Path) -> str:
    return "\n".join(line for line in source.read_text().splitlines() if line.startswith("#include"))


def test_building_without_torch_says_what_to_type(tmp_path: Path) -> None:
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
    built = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert built.returncode != 0
    assert "pip install torch==2.13.0 && pip install --no-build-isolation ." in built.stderr
    assert "Traceback" not in built.stderr


def test_build_info_names_the_running_torch() -> None:
    info = _elastates.build_info()
    assert info["torch_version"] == torch.__version__.partition("+")[0]
    assert isinstance(info["has_cuda"], bool)
    assert isinstance(info["has_uring"], bool)


def test_no_two_native_types_share_a_name() -> None:
    """Two classes of one name in one namespace link without a word, and then one's code works on the other's bytes."""
    homes: dict[str, set[str]] = {}
    for path in sorted((ROOT / "csrc").rglob("*.h")):
        is_anonymous = False
        for line in path.read_text().splitlines():
            is_anonymous = (is_anonymous or line == "namespace {") and line != "}  // namespace"
            if not is_anonymous and (found := re.match(r"(?:struct|class|enum class|union) (\w+)[^;]*$", line)):
                homes.setdefault(found[1], set()).add(path.name)
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}
