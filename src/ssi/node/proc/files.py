"""Files that are read on demand: the process's node gives them, by the caller's right."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import ProtocolError, SsiError, TimedOut
from ssi.common.wire import CHUNK, Message
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.proc.places import Place, place_of
from ssi.node.process.caller import MAX_PID, MAX_UID

QUESTION = "proc-file"
WITHIN_S = 5.0
LAST_S = 5.0
"""From a read of the beginning to that of the end."""

MAX_FILE = 4 << 20
REMEMBERED = 64


def _may(pid: int, uid: int) -> bool:
    """Tell whether `uid` may see what the kernel shows to the owner only.

    The kernel makes root the owner of this file where a process is not to be looked into.
    """
    return uid in {0, Path(f"/proc/{pid}/environ").stat().st_uid}


def read_file(place: Place, uid: int) -> bytes:
    """Return what is at `place` of a process of this node: content, target of a link, or names.

    Names are one a line. Raises OSError.
    """
    kind = stat.S_IFMT(place.mode)
    # Everybody's: 0444 and the lists of threads.
    if not place.mode & 0o004 and not _may(place.pid, uid):
        raise PermissionError(errno.EACCES, "not allowed")
    if kind == stat.S_IFLNK and not _may(place.pid, uid):
        raise PermissionError(errno.EACCES, "not allowed")
    path = f"/proc/{place.pid}/{place.path}"
    if kind == stat.S_IFLNK:
        return os.fsencode(os.readlink(path))
    if kind == stat.S_IFDIR:
        return "\n".join(os.listdir(path)).encode(errors="surrogateescape")
    with Path(path).open("rb") as file:
        return file.read(MAX_FILE)


async def answer_file(call: Call) -> Message:
    """Give another node a file."""
    place = place_of(wire.get_int(call.body, "place", 0, 2**64 - 1))
    if place is None or not place.name or not 1 <= place.pid <= MAX_PID:
        raise ProtocolError("no place")
    uid = wire.get_int(call.body, "uid", 0, MAX_UID)
    try:
        # It may be in the memory of a process that is held for as long as the root is.
        async with asyncio.timeout(WITHIN_S):
            data = await asyncio.to_thread(read_file, place, uid)
    except OSError as error:
        return {"error_number": error.errno or errno.EIO}
    for start in range(0, len(data), CHUNK):
        await call.send({"data": wire.put_bytes(data[start : start + CHUNK])})
    return {"error_number": 0}


class Files:
    """Asks for files, and remembers them for a moment."""

    def __init__(self, ics: Ics) -> None:
        self._ics = ics
        self._known: dict[tuple[Place, int], tuple[float, bytes]] = {}

    async def read(self, node: int, place: Place, uid: int, *, fresh: bool) -> bytes:
        """Return what is at `place`, which is on `node`, if user `uid` may see it; raises OSError.

        Unless `fresh`, what was read just before is wanted.
        """
        known = self._known.get((place, uid))
        if known and not fresh and time.monotonic() - known[0] < LAST_S:
            return known[1]
        data = await self._ask(node, place, uid)
        self._known[place, uid] = time.monotonic(), data
        while len(self._known) > REMEMBERED:
            self._known.pop(next(iter(self._known)))
        return data

    async def list(self, node: int, place: Place, uid: int) -> Sequence[str]:
        """Return the names in a folder; raises OSError."""
        data = await self._ask(node, place, uid)
        return data.decode(errors="surrogateescape").split("\n") if data else []

    async def _ask(self, node: int, place: Place, uid: int) -> bytes:
        data = bytearray()
        body = {"place": place.node, "uid": uid}
        try:
            async with asyncio.timeout(WITHIN_S), self._ics.call(node, QUESTION, body) as stream:
                stream.finish()
                while (part := await stream.receive()) and len(data) <= MAX_FILE:
                    data += wire.get_bytes(part, "data")
                number = wire.get_int(await stream.answer(), "error_number", 0, 4095)
        except (TimedOut, TimeoutError) as error:
            raise OSError(errno.ETIMEDOUT, "no answer") from error
        except SsiError as error:
            raise OSError(errno.ESRCH, str(error)) from error
        if number:
            raise OSError(number, os.strerror(number))
        return bytes(data)
