"""Reading a root, from a tar and from a folder, and what Python code imports."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssi.common.errors import BuildError
from ssi.host.build.elf import close_over_libraries, read_needs
from ssi.host.build.modules import Finder, close_over_modules, list_imports
from ssi.host.build.tree import FolderTree, TarTree, Tree, find, is_file, read_file, resolve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "root"
    (top / "usr/lib/x").mkdir(parents=True)
    (top / "lib").symlink_to("usr/lib")
    (top / "usr/lib/a.so.1").symlink_to("a.so.1.2")
    (top / "usr/lib/a.so.1.2").write_text("library")
    (top / "abs").symlink_to("/lib/a.so.1")
    (top / "up").symlink_to("../../../usr/lib/x/../a.so.1")
    (top / "loop").symlink_to("loop")
    return top


@pytest.fixture(params=["folder", "tar"])
def tree(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Iterator[Tree]:
    if request.param == "folder":
        yield FolderTree(folder)
        return
    path = tmp_path / "root.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(folder, ".")
    opened = TarTree(path)
    yield opened
    opened.close()


@pytest.mark.parametrize("path", ["/lib/a.so.1", "/usr/lib/a.so.1.2", "/abs", "/up"])
def test_links_are_followed_inside_the_root(tree: Tree, path: str) -> None:
    assert resolve(tree, path) == "/usr/lib/a.so.1.2"
    assert read_file(tree, path) == b"library"


def test_what_is_not_there(tree: Tree) -> None:
    assert resolve(tree, "/loop") is None
    assert resolve(tree, "/lib/none") is None
    assert not is_file(tree, "/lib")
    with pytest.raises(BuildError, match="no file /none"):
        read_file(tree, "/none")


def test_find(tree: Tree) -> None:
    assert find(tree, "/lib", "a.so.*") == ["/usr/lib/a.so.1", "/usr/lib/a.so.1.2"]
    assert find(tree, "/nowhere", "*") == []


def test_not_a_tar(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_text("no")
    with pytest.raises(BuildError, match="is no tar archive"):
        TarTree(path)


def test_libraries_of_a_program_here() -> None:
    system = FolderTree(Path("/"))
    loader, needed = read_needs(read_file(system, "/bin/tar"))
    assert loader
    assert "libc.so.6" in needed
    assert any(path.endswith("libc.so.6") for path in close_over_libraries(system, ["/bin/tar"]))
    assert read_needs(b"#!/bin/sh") == (None, [])
    with pytest.raises(BuildError, match="cannot be read"):
        read_needs(b"\x7fELF" + bytes(20))


SOURCE = b"""
from typing import TYPE_CHECKING
import os.path, sys as s
from . import near
from ..up import thing
if TYPE_CHECKING:
    import never
try:
    import maybe
except ImportError:
    pass
def f():
    import late
"""


def test_imports() -> None:
    found = set(list_imports(SOURCE, "a.b", into_functions=False))
    assert {"os.path", "sys", "a.b", "a.b.near", "a.up", "a.up.thing", "maybe"} <= found
    assert not {"never", "late"} & found
    assert "late" in set(list_imports(SOURCE, "a.b", into_functions=True))


def test_modules_bring_what_they_import(tmp_path: Path) -> None:
    for name, text in {
        "top.py": "import pkg.deep\nimport big\nimport _builtin", "big.py": "import more",
        "pkg/__init__.py": "", "pkg/deep.py": "from . import other", "pkg/other.py": "",
        "more.py": "", "pkg/ext.cpython-313-x86_64-linux-gnu.so": "",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    finder = Finder(FolderTree(tmp_path), ["/"])
    found = close_over_modules(finder, ["top", "pkg.ext"], frozenset({"big"}))
    assert set(found) == {"top", "pkg", "pkg.deep", "pkg.other", "pkg.ext"}
    assert found["pkg.ext"].extension


def test_tar_without_entries_for_folders(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("./a/b/c")
        member.size = 2
        tar.addfile(member, io.BytesIO(b"hi"))
    tree = TarTree(path)
    assert read_file(tree, "/a/b/c") == b"hi"
    tree.close()
