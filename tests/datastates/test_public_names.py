"""The package's names: all there, imported when they are asked for."""

import subprocess
import sys

import pytest

import datastates


def in_a_new_interpreter(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout


def test_importing_the_package_imports_no_torch() -> None:
    assert in_a_new_interpreter("import sys, datastates; print('torch' in sys.modules)") == "False\n"


def test_star_and_dir_give_every_public_name() -> None:
    code = "from datastates import *; import datastates; print(*set(datastates.__all__) - set(globals()))"
    assert in_a_new_interpreter(code) == "\n"
    assert set(datastates.__all__) <= set(dir(datastates))


@pytest.mark.parametrize("name", datastates.__all__)
def test_a_name_is_what_its_module_calls_it(name: str) -> None:
    found = getattr(datastates, name)
    assert found.__name__ == name
    assert found.__module__.startswith("datastates.")


def test_modules_are_attributes_too() -> None:
    code = "import datastates; print(datastates.directory.step_name(3), datastates.sight.trace.__name__)"
    assert in_a_new_interpreter(code) == "step-00000003 trace\n"


@pytest.mark.parametrize("name", ["nothing", "_private", "zarr.nothing"])
def test_an_unknown_name_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=rf"module 'datastates' has no attribute '{name}'"):
        getattr(datastates, name)
