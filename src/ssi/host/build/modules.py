"""Which Python modules a program imports, found by reading its code and that of what it imports.

Run as a program by the Python of a root, whose library ours may be too old to parse.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import posixpath
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from ssi.host.build.tree import FolderTree, Tree, find, is_file, read_file


@dataclasses.dataclass(frozen=True, slots=True)
class Module:
    """A module of a root's Python: its source, or a compiled extension."""

    name: str
    path: str
    package: bool = False

    @property
    def extension(self) -> bool:
        """Whether it is machine code."""
        return self.path.endswith(".so")


def find_library_folder(tree: Tree) -> str:
    """Return where the standard library of the root's newest Python 3 is."""
    found = [path for path in find(tree, "/usr/lib", "python3.*") if is_file(tree, f"{path}/os.py")]
    return max(found, key=lambda path: int(path.rpartition(".")[2]), default="")


class Finder:
    """Finds modules in folders of a root."""

    def __init__(self, tree: Tree, folders: Iterable[str]) -> None:
        self._tree = tree
        self._folders = tuple(folders)

    def find(self, name: str) -> Module | None:
        """Return the module `name`, None for one that is built in or not there."""
        relative = name.replace(".", "/")
        for folder in self._folders:
            base = posixpath.join(folder, relative)
            if is_file(self._tree, f"{base}/__init__.py"):
                return Module(name, f"{base}/__init__.py", package=True)
            if is_file(self._tree, f"{base}.py"):
                return Module(name, f"{base}.py")
            parent, last = posixpath.split(base)
            for path in find(self._tree, parent, f"{last}.*.so"):
                return Module(name, path)
        return None

    def source(self, module: Module) -> bytes:
        """Return the source of `module`."""
        return read_file(self._tree, module.path)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _statements(node: ast.AST, *, into_functions: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif _is_type_checking(child):
            continue
        elif into_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _statements(child, into_functions=into_functions)


def list_imports(source: bytes, package: str, *, into_functions: bool) -> Iterator[str]:
    """Yield the names that `source`, in `package`, imports; some may be no modules.

    What functions import is left out unless asked for: in the standard library that is mostly
    what is seldom needed.
    """
    for node in _statements(ast.parse(source), into_functions=into_functions):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            continue
        base = node.module or ""
        if node.level:
            parts = package.split(".")
            base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)


def _parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])


def close_over_modules(
    finder: Finder, names: Iterable[str], without: frozenset[str] = frozenset()
) -> dict[str, Module]:
    """Return the modules `names` and all that they import, by name, but for those `without`."""
    todo = [parent for name in names for parent in _parents(name)]
    found: dict[str, Module] = {}
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen or name.partition(".")[0] in without:
            continue
        seen.add(name)
        module = finder.find(name)
        if module is None:
            continue
        found[name] = module
        if not module.extension:
            package = name if module.package else name.rpartition(".")[0]
            for imported in list_imports(finder.source(module), package, into_functions=False):
                todo += _parents(imported)
    return found


def main() -> None:
    """Read a request as JSON, print the modules as JSON; see `RootPython.close_over`."""
    request = json.load(sys.stdin)
    tree = FolderTree(Path(request["top"]))
    finder = Finder(tree, request["folders"])
    modules = close_over_modules(finder, request["names"], frozenset(request["without"]))
    json.dump([dataclasses.asdict(module) for module in modules.values()], sys.stdout)


if __name__ == "__main__":
    main()
