"""Imports go one way, and some things are not done anywhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssi.host.paths import TOP

SOURCE = TOP / "src" / "ssi"

MAY_IMPORT = {
    "common": {"common"},
    "host": {"host", "common"},
    # What a node runs is packed into the ramdisk without anything of the host's.
    "node": {"node", "common"},
    "cli": {"cli", "host", "common"},
    # What a node's users import: it asks the daemon and is no part of it.
    "api": {"common"},
}

FORBIDDEN_MODULES = {"pickle", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen"}


def list_modules() -> list[Path]:
    return sorted([*SOURCE.glob("*/**/*.py"), SOURCE / "api.py"])


def layer_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            base = node.module or ""
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def strays(tree: ast.AST, layer: str) -> list[str]:
    """Return the imports of `tree` that a module of `layer` may not have."""
    parts = [name.split(".") for name in imported(tree)]
    ours = [part for part in parts if part[0] == "ssi" and len(part) > 1]
    return [".".join(part) for part in ours if part[1] not in MAY_IMPORT[layer]]


def misdeeds(tree: ast.AST) -> list[str]:
    """Return what is done in `tree` that is not done here."""
    found = [name for name in imported(tree) if name.split(".")[0] in FORBIDDEN_MODULES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) in FORBIDDEN_CALLS:
                found.append(ast.unparse(node))
            found += [ast.unparse(node) for word in node.keywords if word.arg == "shell"]
    return found


@pytest.mark.parametrize("path", list_modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_module_keeps_the_rules(path: Path) -> None:
    tree = ast.parse(path.read_text())
    layer = layer_of(path)
    assert layer in MAY_IMPORT, f"{layer} is a new layer: say what it may import"
    assert not strays(tree, layer), f"{layer} may not import these"
    assert not misdeeds(tree)
    assert ast.get_docstring(tree), "a module says in one line what it is for"


def test_every_layer_is_there() -> None:
    assert {layer_of(path) for path in list_modules()} == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        ("common", "import ssi.host.paths"),
        ("node", "from ssi.host import paths"),
        ("node", "from ssi import cli"),
        ("host", "from ssi.cli.main import main"),
        ("api", "from ssi.node.local import Request"),
    ],
)
def test_strays_are_seen(layer: str, text: str) -> None:
    assert strays(ast.parse(text), layer)


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from pickle import load", "eval('1')", "os.system('ls')",
     "subprocess.run('ls', shell=True)"],
)  # fmt: skip
def test_misdeeds_are_seen(text: str) -> None:
    assert misdeeds(ast.parse(text))


def test_clean_code_is_left_alone() -> None:
    tree = ast.parse("import json\nfrom ssi.common import wire\nsubprocess.run(['ls'])\n")
    assert not strays(tree, "node")
    assert not misdeeds(tree)
