"""The files of this project, and the tools that look at them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssi.host.paths import TOP

NOT_OURS = {"__pycache__", ".venv", ".git", "build"}
HIDDEN_BUT_OURS = {".ci", ".gitignore"}


def list_files(folder: Path = TOP) -> Iterator[Path]:
    """Yield the project's files: no products, no caches, nothing of version control."""
    for entry in sorted(folder.iterdir()):
        hidden = entry.name.startswith(".") and entry.name not in HIDDEN_BUT_OURS
        if hidden or entry.name in NOT_OURS or entry.is_symlink():
            continue
        if entry.is_dir():
            yield from list_files(entry)
        else:
            yield entry


def list_scripts(*interpreters: str) -> Iterator[Path]:
    """Yield the files that one of `interpreters` runs, known by their first line."""
    for path in list_files():
        with path.open("rb") as file:
            first = file.readline(80)
        words = first.decode(errors="replace").removeprefix("#!").split()
        if first.startswith(b"#!") and words and words[0].rpartition("/")[2] in interpreters:
            yield path


def find_tool(name: str, package: str) -> str:
    """Return the path of program `name`. Without it CI fails, and a person's test is skipped."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=folders)
    if found:
        return found
    missing = f"{name} is missing: install {package}, or run `make setup`"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


def check_tool(name: str, *args: str, package: str | None = None) -> None:
    """Run a tool over the project; what it says is why the test fails."""
    done = subprocess.run(
        [find_tool(name, package or name), *args], cwd=TOP, check=False, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, f"{name}:\n{done.stdout}"
