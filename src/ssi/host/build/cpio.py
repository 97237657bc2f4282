"""Writes cpio archives in the format newc, which the kernel unpacks into RAM at its start."""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Callable, Iterable
from typing import Protocol

from ssi.common.errors import BuildError

MAGIC = b"070701"
TRAILER = "TRAILER!!!"
ALIGN = 4
MAX_SIZE = 0xFFFFFFFF


class Sink(Protocol):
    """Where bytes go."""

    def write(self, data: bytes, /) -> int:
        """Take `data`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A file, folder, link or device of an archive; `mode` says which. All belong to root.

    Times are left out, so that the same contents give the same archive.
    """

    path: str
    mode: int
    read: Callable[[], bytes] = bytes
    device: tuple[int, int] = (0, 0)


def make_folder(path: str, mode: int = 0o755) -> Entry:
    """Return an entry for a folder."""
    return Entry(path, stat.S_IFDIR | mode)


def make_link(path: str, goal: str) -> Entry:
    """Return an entry for a symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, goal.encode)


def make_file(path: str, read: Callable[[], bytes], *, executable: bool = False) -> Entry:
    """Return an entry for a file, whose contents are read when it is written."""
    return Entry(path, stat.S_IFREG | (0o755 if executable else 0o644), read)


def make_character_device(path: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    """Return an entry for a device; nobody need be root for it."""
    return Entry(path, stat.S_IFCHR | mode, device=(major, minor))


def _pad(size: int) -> bytes:
    return bytes(-size % ALIGN)


def render_entry(entry: Entry, inode: int) -> bytes:
    """Return `entry` as it is in an archive."""
    name = entry.path.lstrip("/").encode() + b"\0"
    data = entry.read()
    if len(data) > MAX_SIZE:
        raise BuildError(f"{entry.path} is too large for a ramdisk")
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (
        inode, entry.mode, 0, 0, links, 0, len(data), 0, 0, *entry.device, len(name), 0,
    )  # fmt: skip
    header = MAGIC + b"".join(b"%08X" % field for field in fields)
    return header + name + _pad(len(header) + len(name)) + data + _pad(len(data))


def write_archive(entries: Iterable[Entry], sink: Sink) -> int:
    """Write `entries` to `sink`, folders before what is in them; return the size."""
    size = 0
    inode = 0
    for inode, entry in enumerate(sorted(entries, key=lambda entry: entry.path.split("/")), 1):
        size += sink.write(render_entry(entry, inode))
    size += sink.write(render_entry(Entry(TRAILER, 0), 0))
    return size
