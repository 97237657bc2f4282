"""Streams of other nodes: pipes and terminals that were passed on here by SCM_RIGHTS.

Each has a name in /devfs that no listing shows, which the opener of native/unixfiles.h makes; it
alone may open it. On its own node the keeper of Unix sockets has it, until that of devices does.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import stat
from pathlib import Path
from typing import Protocol

from ssi.node.devfs.keeper import DeviceKeeper, Done, Order, Wish
from ssi.node.proc import fuse
from ssi.node.proc.fuse import Attributes, Entry

NUMBER_BITS = 48
MAX_STREAM = 2**NUMBER_BITS - 1
NAMED_S = 1e6
"""The kernel forgets it when it is closed, and there is nobody to ask."""

_PLACE = 1 << 62
_NODE_MASK = 0xFF
_PERMISSIONS = stat.S_IRUSR | stat.S_IWUSR
_NAME = re.compile(r"\.stream([1-9]\d{0,2})-([0-9a-f]{1,12})-([0-7]{1,6})-([0-9a-f]{1,8})")


def look_up(name: str) -> Entry | None:
    """Return the entry of a stream's name; None if it is none."""
    match = _NAME.fullmatch(name)
    if match is None or not 0 < int(match[1]) <= _NODE_MASK:
        return None
    mode = int(match[3], 8)
    if mode not in {stat.S_IFIFO | _PERMISSIONS, stat.S_IFCHR | _PERMISSIONS}:
        return None
    place = _PLACE | int(match[1]) << NUMBER_BITS | int(match[2], 16)
    attributes = Attributes(place, mode, flags=fuse.FOREIGN, rdev=int(match[4], 16), links=0)
    return Entry(attributes, 0.0, NAMED_S)


def is_stream(place: int) -> bool:
    """Tell whether a number of the kernel is of a stream."""
    return bool(place & _PLACE)


def find_stream(place: int) -> tuple[int, int]:
    """Return the node of a stream, and what it is called there."""
    return place >> NUMBER_BITS & _NODE_MASK, place & MAX_STREAM


def check_opener(thread: int) -> None:
    """Raise OSError unless a thread is of the ramdisk, as nobody is but what belongs to us."""
    space = Path(f"/proc/{thread}/ns/mnt").stat()
    if space.st_ino != Path("/proc/self/ns/mnt").stat().st_ino:
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))


class Source(Protocol):
    """Who has what has been passed on, until somebody has it open."""

    async def take(self, owner: int, stream: int) -> int:
        """Return a descriptor of what was told to `owner` by this number; raises OSError."""

    def end(self, owner: int, stream: int) -> None:
        """Close it."""


class Streams:
    """This node's, for others."""

    def __init__(self, keeper: DeviceKeeper) -> None:
        self._keeper = keeper
        self.source: Source | None = None
        self._opening: dict[tuple[int, int], asyncio.Task[Done]] = {}

    async def open(self, owner: int, number: int, stream: int) -> Done:
        """Open one for another node, whose request has this number. The same again is the same."""
        key = owner, number
        if key not in self._opening:
            task = asyncio.get_running_loop().create_task(self._open(owner, number, stream))
            self._opening[key] = task
            task.add_done_callback(lambda _: self._opening.pop(key))
        return await asyncio.shield(self._opening[key])

    async def _open(self, owner: int, number: int, stream: int) -> Done:
        if self.source is None:
            return Done(-errno.ENXIO)
        fds = []
        # The daemon before this one may have given it to the keeper, which knows by the request.
        with contextlib.suppress(OSError):
            fds.append(await self.source.take(owner, stream))
        done = await self._keeper.do(Wish(owner, number, Order.OPEN), fds)
        if done.result >= 0:
            self.source.end(owner, stream)
        return done
