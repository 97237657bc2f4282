"""Our own files in the root: the recipe's tree, commands and libraries, and our Python."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ssi.common.addresses import NAME_SERVER, node_address, node_name
from ssi.common.nodes import MAX_NODE
from ssi.host.build import compiled
from ssi.host.build.digest import list_files
from ssi.host.build.modules import Finder, close_over_modules
from ssi.host.build.ramdisk import own_sources
from ssi.host.build.recipe import Recipe
from ssi.host.build.tree import FolderTree
from ssi.host.paths import IMAGE, TOP

OURS = "usr/lib/ssi"
COMMON_TREE = IMAGE / "rootfs/tree"

PROGRAMS = ("ssi.host.build.ramdisk", "ssi.api")
"""What cluster_mkinitrd runs, and what people import; each gets that and what it imports, laid out
as in the checkout."""


def render_hosts() -> str:
    """Return /etc/hosts: the nodes find each other by name without asking anybody."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
    lines += [f"{node_address(node)} {node_name(node)}" for node in range(1, MAX_NODE + 1)]
    return "\n".join(lines) + "\n"


def generated_files() -> dict[str, str]:
    """Return the files that are not in any tree."""
    return {
        "etc/hosts": render_hosts(),
        "etc/resolv.conf": f"nameserver {NAME_SERVER}\noptions timeout:2 attempts:2\n",
        **compiled.GENERATED,
    }


def list_overlay(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """Yield the files to copy and their paths in the root; of two for one path the later wins."""
    for top in (COMMON_TREE, recipe.tree):
        for path in list_files(top):
            yield path, os.fspath(path.relative_to(top))
    for path in list_software():
        yield path, f"{OURS}/{path.relative_to(TOP)}"


def list_software() -> list[Path]:
    """Return our Python: what makes a ramdisk, what is packed into one, what people import."""
    tree = FolderTree(TOP / "src")
    modules = close_over_modules(Finder(tree, ["/"]), PROGRAMS).values()
    files = {TOP / "src" / module.path.lstrip("/") for module in modules}
    return sorted({*files, *own_sources(), *list_files(IMAGE / "ramdisk")})


def _member(name: str, mode: int, size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(f"./{name}")
    member.mode, member.size = mode, size
    member.uname = member.gname = "root"
    return member


def _folders(names: Iterable[str]) -> list[str]:
    """Return the folders of ours that no package makes, parents first."""
    ours = {
        os.fspath(parent)
        for name in names if name.startswith(f"{OURS}/")
        for parent in Path(name).parents if len(parent.parts) >= len(Path(OURS).parts)
    }  # fmt: skip
    return sorted({*ours, *compiled.FOLDERS})


def _add_link(tar: tarfile.TarFile, name: str, goal: str) -> None:
    member = _member(name, 0o777)
    member.type, member.linkname = tarfile.SYMTYPE, goal
    tar.addfile(member)


def _add(tar: tarfile.TarFile, name: str, path: Path) -> None:
    if path.is_symlink():
        _add_link(tar, name, os.fspath(path.readlink()))
        return
    status = path.stat()
    with path.open("rb") as file:
        mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
        if name in compiled.SET_USER_ID:
            mode |= stat.S_ISUID
        tar.addfile(_member(name, mode, status.st_size), file)


def write_overlay(recipe: Recipe, target: Path) -> None:
    """Write the tar with our own files; the same files give the same tar."""
    files = {name: path for path, name in list_overlay(recipe)}
    with (
        tempfile.TemporaryDirectory(prefix="ssi-root-") as folder,
        tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar,
    ):
        _write_files(tar, {**compiled.compile_products(Path(folder)), **files})
        for name, text in generated_files().items():
            data = text.encode()
            tar.addfile(_member(name, 0o644, len(data)), io.BytesIO(data))
        for name, goal in compiled.LINKS.items():
            _add_link(tar, name, goal)


def _write_files(tar: tarfile.TarFile, files: Mapping[str, Path]) -> None:
    for name in _folders(files):
        member = _member(name, 0o755)
        member.type = tarfile.DIRTYPE
        tar.addfile(member)
    for name, path in sorted(files.items()):
        if name not in generated_files():
            _add(tar, name, path)
