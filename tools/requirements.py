"""Prints the Python packages that a pyproject.toml asks for: its dependencies and the extras named.

requirements.py PYPROJECT [EXTRA]...
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def list_requirements(text: str, extras: list[str]) -> list[str]:
    """Return the requirements in `text`, those of `extras` included."""
    project = tomllib.loads(text)["project"]
    optional = project.get("optional-dependencies", {})
    return [*project["dependencies"], *(one for extra in extras for one in optional[extra])]


if __name__ == "__main__":
    sys.stdout.write(
        "".join(
            f"{one}\n" for one in list_requirements(Path(sys.argv[1]).read_text(), sys.argv[2:])
        )
    )
