"""Print the distribution's dependencies, and those of the extras named, one requirement a line.

    python scripts/requirements.py dev examples | pip install -r /dev/stdin

Lets dependencies be installed, and kept, without building the distribution.
"""

import sys
import tomllib
from pathlib import Path


def requirements(extras: list[str]) -> list[str]:
    """The requirements in pyproject.toml, in order.

    Raises:
        KeyError: pyproject.toml has no such extra.
    """
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    found: list[str] = list(project["dependencies"])
    for extra in extras:
        found += project["optional-dependencies"][extra]
    return found


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1:])))
