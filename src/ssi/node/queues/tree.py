"""/dev/mqueue: the queues of all nodes as files. This node's are the kernel's own."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import stat
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import unquote_to_bytes

from ssi.common import wire
from ssi.common.errors import SsiError
from ssi.common.wire import Message
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.proc import fuse
from ssi.node.proc.fuse import Attributes, Entry, Op, Request
from ssi.node.process.asking import Asking
from ssi.node.queues.ends import Ends
from ssi.node.queues.homes import Homes
from ssi.node.state.ipc import Home
from ssi.node.state.queues import check_name, queue_name

QUESTION = "queue-look"
FOLDER = stat.S_IFDIR | 0o1777
WITHIN_S = 5.0
REMOVING = 1 << 57
"""Set in the number of a request of this file system: the device's have others."""

MAX_TEXT = 4096


def _number_of(name: str, home: Home) -> int:
    """Return what the kernel calls a queue: known again by who comes after this daemon."""
    digest = hashlib.blake2b(f"{name} {home.node} {home.boot}".encode(), digest_size=7).digest()
    return fuse.ROOT + 1 + int.from_bytes(digest, "little")


def _shown(name: str) -> str:
    return unquote_to_bytes(name).decode(errors="surrogateescape")


async def _agree(_: Request) -> bytes:
    return b""


async def _open_folder(_: Request) -> bytes:
    return fuse.pack_open(0)


async def _stat_system(_: Request) -> bytes:
    return bytes(80)


class Tree:
    """Answers the kernel's requests, and those of other nodes about this one's."""

    def __init__(self, homes: Homes, ends: Ends, asking: Asking, ics: Ics) -> None:
        self._homes = homes
        self._ends = ends
        self._asking = asking
        ics.serve(QUESTION, self._answer_look)
        self._answers: Mapping[int, Callable[[Request], Awaitable[bytes]]] = {
            Op.LOOKUP: self._look_up, Op.GETATTR: self._stat, Op.READ: self._read,
            Op.UNLINK: self._unlink, Op.OPENDIR: _open_folder, Op.READDIRPLUS: self._list,
            Op.RELEASEDIR: _agree, Op.DESTROY: _agree, Op.STATFS: _stat_system,
        }  # fmt: skip

    async def answer(self, request: Request) -> bytes:
        """Return the body of the answer; raises OSError."""
        answer = self._answers.get(request.op)
        if answer is None:
            # Nothing is made there but by mq_open.
            made = request.op in {Op.CREATE, Op.MKNOD}
            raise OSError(errno.EPERM if made else errno.ENOSYS, f"FUSE request {request.op}")
        return await answer(request)

    async def _look(self, name: str, home: Home) -> tuple[Attributes, bytes]:
        """Return what there is to say of a queue, and what is read of it; raises OSError."""
        try:
            async with asyncio.timeout(WITHIN_S):
                while self._homes.is_moving(name):
                    await self._homes.wait_change()
                home = self._homes.find(name) or home
                answer = await self._asking.ask(home.node, QUESTION, {"name": name})
        except (SsiError, TimeoutError) as error:
            raise OSError(errno.EIO, "no answer") from error
        if not wire.get_flag(answer, "there"):
            raise FileNotFoundError(errno.ENOENT, name)
        text = wire.get_bytes(answer, "text")[:MAX_TEXT]
        here = home == self._homes.own
        attributes = Attributes(
            _number_of(name, home),
            stat.S_IFREG | wire.get_int(answer, "mode", 0, 0o7777), len(text),
            wire.get_int(answer, "uid", 0, 2**32 - 1), wire.get_int(answer, "gid", 0, 2**32 - 1),
            flags=fuse.ELSEWHERE if here else fuse.UNSIZED,
        )  # fmt: skip
        return attributes, text

    @property
    def _there(self) -> dict[str, Home]:
        """Where all queues are, or were and will be somewhere else soon."""
        return {**self._homes.list_moving(), **self._homes.list_all()}

    async def _answer_look(self, call: Call) -> Message:
        path = self._homes.path_of(check_name(wire.get_text(call.body, "name")))
        try:
            found, text = path.lstat(), path.read_bytes()
        except OSError:
            return {"there": False}
        return {
            "there": True, "mode": stat.S_IMODE(found.st_mode), "uid": found.st_uid,
            "gid": found.st_gid, "text": wire.put_bytes(text),
        }  # fmt: skip

    def _find(self, number: int) -> tuple[str, Home]:
        for name, home in self._there.items():
            if _number_of(name, home) == number:
                return name, home
        raise FileNotFoundError(errno.ENOENT, "the queue is gone")

    async def _look_up(self, request: Request) -> bytes:
        name = queue_name(os.fsencode(request.name))
        home = self._there.get(name)
        if request.node != fuse.ROOT or home is None:
            raise FileNotFoundError(errno.ENOENT, request.name)
        attributes, _ = await self._look(name, home)
        return Entry(attributes).pack()

    async def _stat(self, request: Request) -> bytes:
        if request.node == fuse.ROOT:
            return fuse.pack_attributes(Attributes(fuse.ROOT, FOLDER, links=2), 0)
        attributes, _ = await self._look(*self._find(request.node))
        return fuse.pack_attributes(attributes, 0)

    async def _read(self, request: Request) -> bytes:
        _, offset, size = request.reading
        _, text = await self._look(*self._find(request.node))
        return text[offset : offset + size]

    async def _unlink(self, request: Request) -> bytes:
        name = os.fsencode(request.name)
        await self._ends.remove(request.unique & ~fuse.RESENT | REMOVING, request.pid, name)
        return b""

    async def _list(self, request: Request) -> bytes:
        _, offset, size = request.reading
        names = [".", "..", *(_shown(name) for name in sorted(self._there))]
        data = b""
        for place, name in enumerate(names[offset:], offset + 1):
            kind = FOLDER if place <= len((".", "..")) else stat.S_IFREG
            part = fuse.NO_ENTRY + fuse.pack_dirent(name, place, kind)
            if len(data) + len(part) > size:
                break
            data += part
        return data
