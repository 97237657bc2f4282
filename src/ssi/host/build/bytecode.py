"""A root's own Python, run from a folder: it reads and compiles modules of its own version."""

from __future__ import annotations

import json
import os
import posixpath
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from ssi.host.build.command import Command, run
from ssi.host.build.elf import close_over_libraries, library_folders, read_needs
from ssi.host.build.modules import Module
from ssi.host.build.tree import Tree, read_file
from ssi.host.paths import TOP

COMPILE = """\
import sys
from py_compile import PycInvalidationMode, compile
mode = PycInvalidationMode.UNCHECKED_HASH
for line in sys.stdin:
    source, target, shown = line.rstrip("\\n").split("\\t")
    compile(source, target, shown, doraise=True, invalidation_mode=mode)
"""
"""UNCHECKED_HASH: nothing changes in a ramdisk, so no time and no source is looked at."""

CLOSE = "from ssi.host.build.modules import main; main()"

BUILTIN = "import sys; print(*sys.builtin_module_names)"

IMPORT = """\
import importlib, sys
sys.path.append(sys.argv[1])
for name in sys.stdin.read().split():
    importlib.import_module(name)
"""

LEFT_OUT = frozenset({
    "__pycache__", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tests", "tkinter",
    "turtledemo", "venv",
})  # fmt: skip
"""Large folders of the library that no program imports."""


class RootPython:
    """A root's Python, laid out in a folder and run by the root's own loader.

    So nobody need be root for a chroot, and bytecode is of the right version.
    """

    def __init__(self, tree: Tree, library: str, stage: Path) -> None:
        self._tree = tree
        self._stage = stage
        self._library = library
        self._program = f"/usr/bin/{posixpath.basename(library)}"
        self._loader, _ = read_needs(read_file(tree, self._program))
        files = [self._program, *self._list_library(library)]
        elf = [path for path in files if not path.endswith(".py")]
        for path in (*files, *close_over_libraries(tree, elf)):
            self._lay_out(path)
        self.builtin = frozenset(self._run("-c", BUILTIN).split())

    def _list_library(self, folder: str) -> Iterable[str]:
        for name in self._tree.names(folder):
            path = posixpath.join(folder, name)
            node = self._tree.node(path)
            if node and stat.S_ISDIR(node.mode) and name not in LEFT_OUT:
                yield from self._list_library(path)
            elif name.endswith((".py", ".so")):
                yield path

    def _lay_out(self, path: str) -> None:
        _write(self._stage / path.lstrip("/"), read_file(self._tree, path))

    def _argv(self, program: str, *words: str) -> list[str]:
        """Return the command that runs `program` of the root, once it is laid out."""
        folders = [*library_folders(self._tree), "/lib64", "/usr/lib64"]
        path = ":".join(os.fspath(self._stage / folder.lstrip("/")) for folder in folders)
        real = os.fspath(self._stage / program.lstrip("/"))
        if self._loader is None:
            return [real, *words]
        loader = os.fspath(self._stage / self._loader.lstrip("/"))
        return [loader, "--library-path", path, real, *words]

    def _run(
        self, *words: str, stdin: Path = Path(os.devnull), home: Path | None = None, path: str = ""
    ) -> str:
        argv = self._argv(self._program, "-sSB", "-Wignore", *words)
        env = {"PYTHONHOME": os.fspath((home or self._stage) / "usr"), "PYTHONPATH": path}
        return run(Command(argv, env=env, stdin=stdin))

    def list_applets(self, busybox: str) -> list[str]:
        """Return the paths of the applets of the root's `busybox`, without leading slashes."""
        for path in (busybox, *close_over_libraries(self._tree, [busybox])):
            self._lay_out(path)
        return run(Command(self._argv(busybox, "--list-full"))).split()

    def close_over(self, names: Iterable[str], without: Iterable[str]) -> list[Module]:
        """Return the modules `names` of the root's library and all that they import."""
        request = {
            "top": os.fspath(self._stage), "names": sorted(set(names)), "without": sorted(without),
            "folders": [self._library, f"{self._library}/lib-dynload"],
        }  # fmt: skip
        ours = os.fspath(TOP / "src")
        todo = self._stage / "request.json"
        todo.write_text(json.dumps(request))
        modules = [
            Module(**fields) for fields in json.loads(self._run("-c", CLOSE, stdin=todo, path=ours))
        ]
        return sorted(modules, key=lambda module: module.path)

    def compile(self, sources: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return the bytecode of `sources`, whose keys are the paths they will have."""
        lines = []
        for index, (path, source) in enumerate(sources.items()):
            file = self._stage / f"{index}.py"
            file.write_bytes(source)
            lines.append(f"{file}\t{file}c\t{path}\n")
        todo = self._stage / "todo"
        todo.write_text("".join(lines))
        self._run("-c", COMPILE, stdin=todo)
        return {
            path: (self._stage / f"{index}.pyc").read_bytes() for index, path in enumerate(sources)
        }

    def check_imports(self, files: Mapping[str, bytes], folder: str, names: Iterable[str]) -> None:
        """Import the modules `names` where nothing but `files` is there to be imported.

        Ours are in `folder`. Raises BuildError with the traceback of what is missing.
        """
        home = self._stage / "alone"
        for path, data in files.items():
            _write(home / path.lstrip("/"), data)
        todo = self._stage / "names"
        todo.write_text("\n".join(names))
        ours = os.fspath(home / folder.lstrip("/"))
        self._run("-c", IMPORT, ours, stdin=todo, home=home)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o755)
