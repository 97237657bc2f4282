"""What is in /devfs: a folder for each node that is up, with its devices in it."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import stat
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping

from ssi.common import wire
from ssi.common.errors import SsiError, TimedOut
from ssi.node.devfs.own import QUESTION
from ssi.node.devfs.places import Look, Places, encode_device
from ssi.node.ics.ics import Ics
from ssi.node.proc import fuse
from ssi.node.proc.fuse import Attributes, Entry, Op, Request
from ssi.node.process.asking import Asking

SHORT_S = 1.0
"""For so long the kernel need not ask again: what is opened is looked at anew, on its node."""

WITHIN_S = 5.0
LISTED_S = 5.0
REMEMBERED = 32
FOLDER = stat.S_IFDIR | 0o755
NODE = re.compile(r"node([1-9]\d{0,3})")


async def _agree(_: Request) -> bytes:
    return b""


async def _open_folder(_: Request) -> bytes:
    return fuse.pack_open(0)


async def _stat_system(_: Request) -> bytes:
    # No blocks: df does not show it.
    return bytes(80)


class Tree:
    """Answers the kernel's requests."""

    def __init__(self, places: Places, asking: Asking, ics: Ics) -> None:
        self._places = places
        self._asking = asking
        self._ics = ics
        self._listed: dict[int, tuple[float, list[Look]]] = {}
        """What was read last of folders, for who reads on."""
        self._answers: Mapping[int, Callable[[Request], Awaitable[bytes]]] = {
            Op.LOOKUP: self._look_up, Op.GETATTR: self._stat, Op.READLINK: self._read_link,
            Op.OPENDIR: _open_folder, Op.READDIRPLUS: self._list, Op.RELEASEDIR: _agree,
            Op.DESTROY: _agree, Op.STATFS: _stat_system,
        }  # fmt: skip

    async def answer(self, request: Request) -> bytes:
        """Return the body of the answer; raises OSError."""
        answer = self._answers.get(request.op)
        if answer is None:
            raise OSError(errno.ENOSYS, f"FUSE request {request.op}")
        return await answer(request)

    # -- what there is ---------------------------------------------------------------------------

    async def _ask(self, node: int, path: str, *, inside: bool = False) -> tuple[Look, list[Look]]:
        """Return what is at a path of a node, and what is in it; raises OSError."""
        found = []
        body = {"path": path, "inside": inside}
        if not self._asking.is_alive(node):
            raise OSError(errno.ENOENT, f"node{node} is down")
        try:
            async with asyncio.timeout(WITHIN_S), self._ics.call(node, QUESTION, body) as stream:
                stream.finish()
                while part := await stream.receive():
                    found.append(Look.load(part))
                answer = await stream.answer()
        except (TimedOut, TimeoutError) as error:
            raise OSError(errno.ETIMEDOUT, "no answer") from error
        except SsiError as error:
            raise OSError(errno.EIO, str(error)) from error
        if number := wire.get_int(answer, "error_number", 0, 4095):
            raise OSError(number, os.strerror(number))
        return Look.load(wire.get_object(answer, "look")), found

    def _entry(self, node: int, path: str, look: Look) -> Entry:
        number = self._places.number_of(node, path)
        device = stat.S_ISCHR(look.mode) or stat.S_ISBLK(look.mode)
        attributes = Attributes(
            number, look.mode, look.size, look.uid, look.gid, look.mtime_ns,
            fuse.FOREIGN if device else 0, encode_device(look.rdev), look.links,
        )  # fmt: skip
        return Entry(attributes, SHORT_S, SHORT_S)

    def _node_entry(self, node: int) -> Entry:
        here = node == self._asking.node
        number = self._places.number_of(node, "")
        attributes = Attributes(number, FOLDER, flags=fuse.ELSEWHERE if here else 0, links=2)
        return Entry(attributes, SHORT_S, SHORT_S)

    async def _look_up(self, request: Request) -> bytes:
        name = request.name
        if request.node == fuse.ROOT:
            match = NODE.fullmatch(name)
            if not match or int(match[1]) not in self._asking.alive:
                raise FileNotFoundError(errno.ENOENT, name)
            return self._node_entry(int(match[1])).pack()
        node, above = self._places.find(request.node)
        path = f"{above}/{name}".lstrip("/")
        look, _ = await self._ask(node, path)
        return self._entry(node, path, look).pack()

    async def _stat(self, request: Request) -> bytes:
        if request.node == fuse.ROOT:
            links = 2 + len(self._asking.alive)
            return fuse.pack_attributes(Attributes(fuse.ROOT, FOLDER, links=links), SHORT_S)
        node, path = self._places.find(request.node)
        if not path:
            return fuse.pack_attributes(self._node_entry(node).attributes, SHORT_S)
        look, _ = await self._ask(node, path)
        return fuse.pack_attributes(self._entry(node, path, look).attributes, SHORT_S)

    async def _read_link(self, request: Request) -> bytes:
        look, _ = await self._ask(*self._places.find(request.node))
        if not look.target:
            raise OSError(errno.EINVAL, "no link")
        return look.target.encode(errors="surrogateescape")

    # -- folders ---------------------------------------------------------------------------------

    async def _list(self, request: Request) -> bytes:
        _, offset, size = request.reading
        if request.node == fuse.ROOT:
            nodes = sorted(self._asking.alive)
            parts = [(f"node{node}", self._node_entry(node)) for node in nodes]
        else:
            node, above = self._places.find(request.node)
            looks = await self._read_folder(request.node, node, above, fresh=not offset)
            parts = [
                (look.name, self._entry(node, f"{above}/{look.name}".lstrip("/"), look))
                for look in looks
            ]
        return _fill(_render(parts, offset), size)

    async def _read_folder(self, number: int, node: int, path: str, *, fresh: bool) -> list[Look]:
        known = self._listed.get(number)
        if known and not fresh and time.monotonic() - known[0] < LISTED_S:
            return known[1]
        _, looks = await self._ask(node, path, inside=True)
        self._listed[number] = time.monotonic(), looks
        while len(self._listed) > REMEMBERED:
            self._listed.pop(next(iter(self._listed)))
        return looks


def _render(parts: list[tuple[str, Entry]], offset: int) -> Iterator[bytes]:
    """Yield the names behind `offset`."""
    for number, name in enumerate((".", ".."), 1):
        if number > offset:
            yield fuse.NO_ENTRY + fuse.pack_dirent(name, number, FOLDER)
    for number, (name, entry) in enumerate(parts, 3):
        if number > offset:
            attributes = entry.attributes
            yield entry.pack() + fuse.pack_dirent(name, number, attributes.mode, attributes.node)


def _fill(parts: Iterator[bytes], size: int) -> bytes:
    """Return as many whole `parts` as `size` bytes hold."""
    data = bytearray()
    for part in parts:
        if len(data) + len(part) > size:
            break
        data += part
    return bytes(data)
