"""Which shared libraries programs need, as the dynamic loader would find them in a root."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterable, Iterator

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

from ssi.common.errors import BuildError
from ssi.host.build.tree import Tree, find, is_file, read_file, resolve

LIBRARY_FOLDERS = ("/usr/lib/*-linux-gnu", "/usr/lib64", "/usr/lib")
MAGIC = b"\x7fELF"


def read_needs(data: bytes) -> tuple[str | None, list[str]]:
    """Return the loader's path and the names of the libraries that the ELF file `data` names."""
    if not data.startswith(MAGIC):
        return None, []
    try:
        elf = ELFFile(io.BytesIO(data))
        loader = None
        names: list[str] = []
        for segment in elf.iter_segments():
            if segment.header.p_type == "PT_INTERP":
                loader = str(segment.get_interp_name())  # type: ignore[attr-defined]
        for section in elf.iter_sections():
            if isinstance(section, DynamicSection):
                tags = section.iter_tags("DT_NEEDED")
                names += [str(tag.needed) for tag in tags]  # type: ignore[attr-defined]
    except ELFError as error:
        raise BuildError(f"an ELF file of the userland cannot be read: {error}") from error
    return loader, names


def library_folders(tree: Tree) -> list[str]:
    """Return where libraries are in `tree`."""
    folders = []
    for pattern in LIBRARY_FOLDERS:
        base, name = posixpath.split(pattern)
        folders += find(tree, base, name)
    return folders


def find_library(tree: Tree, name: str, folders: Iterable[str]) -> str:
    """Return the path of the library `name`."""
    for folder in folders:
        path = posixpath.join(folder, name)
        if is_file(tree, path):
            return path
    raise BuildError(f"the userland has no library {name}")


def close_over_libraries(tree: Tree, programs: Iterable[str]) -> Iterator[str]:
    """Yield the paths of all libraries, and the loader, that the ELF files `programs` need."""
    folders = library_folders(tree)
    todo = list(programs)
    seen: set[str] = set()
    while todo:
        loader, names = read_needs(read_file(tree, todo.pop()))
        paths = [find_library(tree, name, folders) for name in names]
        if loader and resolve(tree, loader):
            paths.append(loader)
        for path in paths:
            if path not in seen:
                seen.add(path)
                todo.append(path)
                yield path
