"""Digests of what artifacts are made from."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

CHUNK = 1 << 20


def digest_text(text: str) -> str:
    """Return the digest of `text`."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Return the digest of the contents and executable bit of `path`, or of a link's goal."""
    if path.is_symlink():
        return digest_text(f"link to {path.readlink()}")
    state = hashlib.sha256()
    with path.open("rb") as file:
        # A script that is no longer executable is another script.
        state.update(b"x" if os.fstat(file.fileno()).st_mode & stat.S_IXUSR else b"-")
        while chunk := file.read(CHUNK):
            state.update(chunk)
    return state.hexdigest()


def list_files(folder: Path) -> Iterator[Path]:
    """Yield the files and links below `folder` in a fixed order, without Python's caches."""
    for base, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        links = [name for name in folders if (Path(base) / name).is_symlink()]
        for name in sorted([*names, *links]):
            if not name.endswith((".pyc", "~", ".orig", ".rej")):
                yield Path(base) / name


def digest_files(paths: Iterable[Path], top: Path) -> dict[str, str]:
    """Return the digests of `paths`, named relative to `top`; folders stand for their files."""
    digests = {}
    for path in paths:
        for file in list_files(path) if path.is_dir() else [path]:
            digests[os.fspath(file.relative_to(top))] = digest_file(file)
    return digests


def digest_tree_state(folder: Path) -> str:
    """Return a digest of names, sizes and times below `folder`: for trees too large to read."""
    state = hashlib.sha256()
    for path in list_files(folder):
        status = path.lstat()
        name = os.fspath(path.relative_to(folder))
        state.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return state.hexdigest()
