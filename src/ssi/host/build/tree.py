"""Reads a root: the tar that a distribution's tool made, or a folder such as / itself."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import posixpath
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ssi.common.errors import BuildError

MAX_LINKS = 40
"""As in the kernel; beyond it is a loop."""


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """What is found at a path: a file with its contents, a folder, or a link with its goal."""

    mode: int
    goal: str = ""
    read: Callable[[], bytes] = bytes


class Tree(Protocol):
    """A root, whose paths begin with /. No link is followed."""

    def node(self, path: str) -> Node | None:
        """Return what is at `path`, None if nothing is."""

    def names(self, folder: str) -> list[str]:
        """Return the names in `folder`, sorted; none if it is no folder."""


class FolderTree:
    """A folder of this machine as a root."""

    def __init__(self, top: Path) -> None:
        self._top = top

    def _real(self, path: str) -> Path:
        return self._top / path.lstrip("/")

    def node(self, path: str) -> Node | None:
        """Return what is at `path`, None if nothing is."""
        real = self._real(path)
        try:
            mode = real.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISLNK(mode):
            return Node(mode, os.fspath(real.readlink()))
        return Node(mode, read=real.read_bytes)

    def names(self, folder: str) -> list[str]:
        """Return the names in `folder`."""
        try:
            return sorted(path.name for path in self._real(folder).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []


class TarTree:
    """A tar archive as a root."""

    def __init__(self, path: Path) -> None:
        try:
            self._tar = tarfile.open(path)  # noqa: SIM115 - read from as long as this lives
        except (tarfile.TarError, OSError) as error:
            raise BuildError(f"{path} is no tar archive: {error}") from error
        self._members: dict[str, tarfile.TarInfo] = {}
        self._names: dict[str, set[str]] = {}
        for member in self._tar:
            name = posixpath.normpath("/" + member.name).replace("//", "/")
            self._members[name] = member
            self._note_names(name)

    def _note_names(self, path: str) -> None:
        # Some archives have no entries for folders.
        while path != "/":
            path, name = posixpath.split(path)
            names = self._names.setdefault(path, set())
            if name in names:
                return
            names.add(name)

    def close(self) -> None:
        """Close the archive."""
        self._tar.close()

    def node(self, path: str) -> Node | None:
        """Return what is at `path`, None if nothing is."""
        if path == "/":
            return Node(stat.S_IFDIR | 0o755)
        member = self._members.get(path)
        if member is None:
            return Node(stat.S_IFDIR | 0o755) if path in self._names else None
        if member.issym():
            return Node(stat.S_IFLNK | 0o777, member.linkname)
        kind = stat.S_IFDIR if member.isdir() else stat.S_IFREG

        def read() -> bytes:
            file = self._tar.extractfile(member)
            return file.read() if file else b""

        return Node(kind | member.mode, read=read)

    def names(self, folder: str) -> list[str]:
        """Return the names in `folder`."""
        return sorted(self._names.get(folder, ()))


def resolve(tree: Tree, path: str) -> str | None:
    """Return the path that `path` leads to when all links are followed, None if to nothing."""
    todo = [part for part in reversed(path.split("/")) if part not in {"", "."}]
    current = "/"
    followed = 0
    while todo:
        part = todo.pop()
        if part == "..":
            current = posixpath.dirname(current)
            continue
        step = posixpath.join(current, part)
        node = tree.node(step)
        if node is None:
            return None
        if not stat.S_ISLNK(node.mode):
            current = step
            continue
        followed += 1
        if followed > MAX_LINKS:
            return None
        if node.goal.startswith("/"):
            current = "/"
        todo += [part for part in reversed(node.goal.split("/")) if part not in {"", "."}]
    return current


def read_file(tree: Tree, path: str) -> bytes:
    """Return the contents of the file that `path` leads to."""
    real = resolve(tree, path)
    node = tree.node(real) if real else None
    if node is None or not stat.S_ISREG(node.mode):
        raise BuildError(f"the userland has no file {path}")
    return node.read()


def is_file(tree: Tree, path: str) -> bool:
    """Tell whether `path` leads to a file."""
    real = resolve(tree, path)
    node = tree.node(real) if real else None
    return node is not None and stat.S_ISREG(node.mode)


def find(tree: Tree, folder: str, pattern: str) -> list[str]:
    """Return the paths in `folder` whose names match `pattern`."""
    real = resolve(tree, folder)
    if real is None:
        return []
    return [posixpath.join(real, name) for name in fnmatch.filter(tree.names(real), pattern)]
