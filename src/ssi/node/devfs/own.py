"""What there is in /dev of this node's userland, for the others to show."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from ssi.common import wire
from ssi.common.wire import Message
from ssi.node.devfs.places import Look, check_path
from ssi.node.ics.answering import Call

QUESTION = "device-look"

FOLDERS_OF_FILES = frozenset({"shm", "mqueue", "hugepages"})
"""What is in them are no devices."""

KINDS = frozenset({stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK})


def look_at(root: Path, path: str, name: str) -> Look | None:
    """Return what is at `path` below `root`, None if it is nothing to be shown; raises OSError."""
    whole = root / path
    status = whole.lstat()
    if stat.S_IFMT(status.st_mode) not in KINDS:
        return None
    target = os.fsdecode(os.readlink(whole)) if stat.S_ISLNK(status.st_mode) else ""
    return Look(
        name, status.st_mode, status.st_uid, status.st_gid, status.st_rdev, status.st_size,
        status.st_nlink, status.st_mtime_ns, target,
    )  # fmt: skip


def list_folder(root: Path, path: str) -> list[Look]:
    """Return what is in a folder; raises OSError."""
    if path in FOLDERS_OF_FILES:
        return []
    found = []
    for name in sorted(os.listdir(root / path)):
        try:
            look = look_at(root, f"{path}/{name}".lstrip("/"), name)
        except FileNotFoundError:
            continue
        if look:
            found.append(look)
    return found


def _look(root: Path, path: str, *, inside: bool) -> tuple[Look | None, list[Look]]:
    *above, name = path.split("/")
    if above and above[0] in FOLDERS_OF_FILES:
        raise FileNotFoundError(errno.ENOENT, path)
    for count in range(len(above)):
        if root.joinpath(*above[: count + 1]).is_symlink():
            raise OSError(errno.ELOOP, path)
    look = look_at(root, path, name)
    return look, list_folder(root, path) if inside else []


class Own:
    """Answers for this node."""

    def __init__(self, find_root: Callable[[], Path]) -> None:
        self._find_root = find_root

    async def answer(self, call: Call) -> Message:
        """Tell another node what is at a path, and what is in it."""
        path = check_path(wire.get_text(call.body, "path"))
        inside = wire.get_flag(call.body, "inside")
        try:
            look, entries = await asyncio.to_thread(_look, self._find_root(), path, inside=inside)
        except OSError as error:
            return {"error_number": error.errno or errno.EIO}
        if look is None:
            return {"error_number": errno.ENOENT}
        for entry in entries:
            await call.send(entry.dump())
        return {"error_number": 0, "look": look.dump()}
