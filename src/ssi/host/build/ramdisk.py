"""The ramdisk: what a node runs from RAM, picked from a root's files and our own."""

from __future__ import annotations

import dataclasses
import os
import posixpath
import re
import stat
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import zstandard

from ssi.common.errors import BuildError, UsageError
from ssi.host.build import cpio
from ssi.host.build.bytecode import RootPython
from ssi.host.build.digest import list_files
from ssi.host.build.elf import close_over_libraries, library_folders
from ssi.host.build.modules import Module, find_library_folder, list_imports
from ssi.host.build.tree import FolderTree, Tree, find, is_file, read_file
from ssi.host.paths import IMAGE, TOP

MANIFEST = IMAGE / "ramdisk/manifest.toml"
TREE = IMAGE / "ramdisk/tree"
SOURCES = TOP / "src/ssi"
PACKAGES = ("node", "common")
"""Of ours; the rest of `ssi` is for the host."""

OURS = "/usr/lib/ssi"
PROGRAM_FOLDERS = ("/usr/sbin", "/usr/bin")
MERGED = ("bin/", "sbin/", "lib/", "lib64/")
"""Folders that are links into /usr."""

LEVEL = 9
"""Of compression: higher ones save one percent, and take more memory than a small node may have."""

KERNEL_VERSION = re.compile(r"\d+\.\d+(\.\d+)?[\w.+~-]*", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True)
class Manifest:
    """What of the root goes into the ramdisk."""

    busybox: str
    programs: tuple[str, ...]
    libraries: tuple[str, ...]
    folders: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    modules: tuple[str, ...]
    without: frozenset[str]

    @classmethod
    def from_toml(cls, text: str) -> Manifest:
        """Read manifest.toml."""
        table = tomllib.loads(text)
        python = table.pop("python")
        known = {"busybox", "programs", "libraries", "folders", "links"}
        if unknown := (table.keys() - known) | (python.keys() - {"modules", "without"}):
            raise UsageError(f"manifest.toml: unknown key {min(unknown)}")
        return cls(
            table["busybox"], tuple(table["programs"]), tuple(table["libraries"]),
            tuple(table["folders"]), tuple(table["links"].items()),
            tuple(python["modules"]), frozenset(python["without"]),
        )  # fmt: skip


def check_kernel_version(text: str) -> str:
    """Return `text` if it may be what `uname -r` says, else raise UsageError."""
    if not KERNEL_VERSION.fullmatch(text):
        raise UsageError(f"{text!r} is no version of a kernel", hint="it is what `uname -r` says")
    return text


def _place(path: str) -> str:
    """Return where `path` really is, as /bin and the like are links into /usr."""
    relative = path.lstrip("/")
    return f"/usr/{relative}" if relative.startswith(MERGED) else f"/{relative}"


def own_sources() -> Iterator[Path]:
    """Yield the Python files of ours that are in a ramdisk."""
    yield SOURCES / "__init__.py"
    for package in PACKAGES:
        yield from (path for path in list_files(SOURCES / package) if path.suffix == ".py")


def _module_names() -> Iterator[str]:
    """Yield the names of our modules in a ramdisk."""
    for path in own_sources():
        relative = path.relative_to(SOURCES.parent).with_suffix("")
        yield ".".join(relative.parts).removesuffix(".__init__")


class RamdiskBuilder:
    """Collects the ramdisk's entries; the first to claim a path keeps it."""

    def __init__(self, tree: Tree, manifest: Manifest, stage: Path) -> None:
        self._tree = tree
        self._manifest = manifest
        self._stage = stage
        self._entries: dict[str, cpio.Entry] = {}
        self._elf: list[str] = []
        self._library = find_library_folder(tree)
        if not self._library:
            raise BuildError("the userland has no python3")
        self._python = RootPython(tree, self._library, stage)

    def _add(self, entry: cpio.Entry) -> None:
        path = _place(entry.path)
        self._entries.setdefault(path, dataclasses.replace(entry, path=path))

    def _add_from_root(self, path: str, target: str = "") -> None:
        self._add(cpio.make_file(
            target or path, lambda: read_file(self._tree, path), executable=True
        ))  # fmt: skip

    def collect(self, kernel: str) -> list[cpio.Entry]:
        """Return all entries."""
        self._add_release(kernel)
        self._add_own_tree()
        self._add_programs()
        self._add_python()
        self._add_libraries()
        self._add_frame()
        return self._with_folders()

    def _add_release(self, kernel: str) -> None:
        system = ""
        if is_file(self._tree, "/etc/os-release"):
            lines = read_file(self._tree, "/etc/os-release").decode().splitlines()
            system = next((line for line in lines if line.startswith("PRETTY_NAME=")), "")
        text = f"{system}\n" + (f'KERNEL="{kernel}"\n' if kernel else "")
        self._add(cpio.make_file("/etc/ssi-release", text.encode))

    def _add_own_tree(self) -> None:
        for path in list_files(TREE):
            target = "/" + os.fspath(path.relative_to(TREE))
            if path.is_symlink():
                self._add(cpio.make_link(target, os.fspath(path.readlink())))
            else:
                executable = bool(path.stat().st_mode & stat.S_IXUSR)
                self._add(cpio.make_file(target, path.read_bytes, executable=executable))

    def _find_program(self, name: str) -> str:
        for folder in PROGRAM_FOLDERS:
            path = posixpath.join(folder, name)  # a name with a slash in front stays as it is
            if is_file(self._tree, path):
                return path
        raise BuildError(f"the userland has no program {name}, which the ramdisk needs")

    def _add_programs(self) -> None:
        for name in self._manifest.programs:
            path = self._find_program(name)
            self._add_from_root(path)
            self._elf.append(path)
        busybox = self._find_program(self._manifest.busybox)
        self._add_from_root(busybox, "/usr/bin/busybox")
        self._elf.append(busybox)
        taken = {posixpath.basename(name) for name in self._manifest.programs}
        for applet in self._python.list_applets(busybox):
            # "linuxrc" is what the kernel runs on an old kind of ramdisk.
            if "/" in applet and posixpath.basename(applet) not in taken:
                self._add(cpio.make_link(f"/{applet}", "/usr/bin/busybox"))

    def _imports_of_ours(self) -> Iterator[str]:
        for path in own_sources():
            package = ".".join(path.relative_to(SOURCES.parent).parent.parts)
            yield from list_imports(path.read_bytes(), package, into_functions=True)
        for path in list_files(TREE):
            if b"python3" in path.read_bytes().partition(b"\n")[0]:
                yield from list_imports(path.read_bytes(), "", into_functions=True)

    def _add_python(self) -> None:
        program = f"/usr/bin/{posixpath.basename(self._library)}"
        self._add_from_root(program)
        self._add(cpio.make_link("/usr/bin/python3", posixpath.basename(program)))
        self._elf.append(program)
        names = [*self._manifest.modules, *self._imports_of_ours()]
        names = [name for name in names if name.partition(".")[0] != "ssi"]
        modules = self._python.close_over(names, self._manifest.without)
        found = {module.name for module in modules} | self._python.builtin
        if missing := set(self._manifest.modules) - found:
            raise BuildError(f"the userland's Python has no module {', '.join(sorted(missing))}")
        self._add_modules(modules)

    def _add_modules(self, modules: Iterable[Module]) -> None:
        sources: dict[str, bytes] = {}
        files: dict[str, bytes] = {}
        for module in modules:
            if module.extension:
                files[module.path] = read_file(self._tree, module.path)
                self._elf.append(module.path)
            else:
                sources[module.path] = read_file(self._tree, module.path)
        ours = {
            f"{OURS}/{path.relative_to(SOURCES.parent)}": path.read_bytes()
            for path in own_sources()
        }
        for path, code in self._python.compile({**sources, **ours}).items():
            files[self._place_bytecode(path, ours=path in ours)] = code
        # Ours come with their source, so that a traceback shows lines.
        files |= ours
        self._python.check_imports(files, OURS, [*self._manifest.modules, *_module_names()])
        for path, data in files.items():
            executable = path.endswith(".so")
            self._add(cpio.make_file(path, partial(bytes, data), executable=executable))

    def _place_bytecode(self, path: str, *, ours: bool) -> str:
        """Return where the bytecode of `path` goes: to the source's place if that is left out."""
        if not ours:
            return f"{path}c"
        tag = "cpython-" + posixpath.basename(self._library).removeprefix("python").replace(".", "")
        folder, name = posixpath.split(path)
        return f"{folder}/__pycache__/{name.removesuffix('.py')}.{tag}.pyc"

    def _add_libraries(self) -> None:
        folders = library_folders(self._tree)
        for pattern in self._manifest.libraries:
            found = [path for folder in folders for path in find(self._tree, folder, pattern)]
            # libx.so.5 and what it leads to, libx.so.5.0.0: the short name is the one asked for.
            names = [path for path in found if posixpath.basename(path).count(".") <= 2]
            if not names:
                raise BuildError(f"the userland has no library {pattern}")
            for path in names:
                self._add_from_root(path)
                self._elf.append(path)
        for path in close_over_libraries(self._tree, self._elf):
            self._add_from_root(path)

    def _add_frame(self) -> None:
        for path, goal in self._manifest.links:
            self._add(cpio.make_link(path, goal))
        for path in self._manifest.folders:
            self._add(cpio.make_folder(path, 0o1777 if path == "/tmp" else 0o755))
        # The kernel opens the console before anything can have made it.
        self._add(cpio.make_character_device("/dev/console", 5, 1))
        self._add(cpio.make_character_device("/dev/null", 1, 3, 0o666))

    def _with_folders(self) -> list[cpio.Entry]:
        for path in list(self._entries):
            parent = posixpath.dirname(path)
            while parent != "/" and parent not in self._entries:
                self._entries[parent] = cpio.make_folder(parent)
                parent = posixpath.dirname(parent)
        return list(self._entries.values())


def collect_ramdisk(tree: Tree, *, kernel: str = "") -> list[cpio.Entry]:
    """Return the entries of a ramdisk made from the root `tree`."""
    manifest = Manifest.from_toml(MANIFEST.read_text())
    with tempfile.TemporaryDirectory(prefix="ssi-ramdisk-") as stage:
        return RamdiskBuilder(tree, manifest, Path(stage)).collect(kernel)


def write_ramdisk(entries: Iterable[cpio.Entry], target: Path) -> int:
    """Write `entries` to `target`, compressed; return the size before compression."""
    packer = zstandard.ZstdCompressor(level=LEVEL)
    with target.open("wb") as file, packer.stream_writer(file) as sink:
        return cpio.write_archive(entries, sink)


def make_ramdisk_of_this_system(target: Path, kernel: str) -> int:
    """Make a ramdisk from the files of the running system; return the size before compression."""
    check_kernel_version(kernel)
    return write_ramdisk(collect_ramdisk(FolderTree(Path("/")), kernel=kernel), target)
