"""What is in /devfs: a folder for each node that is up, with its devices in it.

Beside these, where no listing shows it, a folder for each node that is /dev for those of its
processes which run here (fuse-covered.patch). In it are that node's devices, but for what is alike
everywhere or a matter of the kernel that the process runs on: that is this node's own. Of terminals
the number tells whose they are. On its own node all is its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import SsiError, TimedOut
from ssi.node.devfs import streams
from ssi.node.devfs.own import QUESTION
from ssi.node.devfs.places import (
    HOME,
    TERMINALS,
    Look,
    Places,
    encode_device,
    terminal_node,
)  # fmt: skip
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

LONG_S = 1e6
"""What is below the mount the kernel finds for itself: if it is gone, it hears so there."""

OWN = frozenset({
    "null", "zero", "full", "random", "urandom", "fd", "stdin", "stdout", "stderr", "tty", "ssi",
    "ptmx", "shm", "mqueue", "hugepages", "log", "fuse", "cuse", "net", "futexes",
})  # fmt: skip
"""What visitors have of the node that they are on."""

TTY = "tty"


_FOLDER = Look("", FOLDER, 0, 0, 0, 0, 2, 0)


async def _agree(_: Request) -> bytes:
    return b""


async def _open_folder(_: Request) -> bytes:
    return fuse.pack_open(0)


async def _stat_system(_: Request) -> bytes:
    # No blocks: df does not show it.
    return bytes(80)


class Tree:
    """Answers the kernel's requests."""

    def __init__(
        self, places: Places, asking: Asking, ics: Ics, find_root: Callable[[], Path]
    ) -> None:
        """`find_root` returns this node's /dev."""
        self._find_root = find_root
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
        if request.node == fuse.ROOT and (match := HOME.fullmatch(name)):
            return self._home_entry(int(match[1]), "", _FOLDER).pack()
        if request.node == fuse.ROOT and (stream := streams.look_up(name)):
            return stream.pack()
        if request.node == fuse.ROOT:
            match = NODE.fullmatch(name)
            if not match or int(match[1]) not in self._asking.alive:
                raise FileNotFoundError(errno.ENOENT, name)
            return self._node_entry(int(match[1])).pack()
        node, above = self._places.find(request.node)
        path = f"{above}/{name}".lstrip("/")
        if node < 0:
            return (await self._look_at_home(-node, path)).pack()
        look, _ = await self._ask(node, path)
        return self._entry(node, path, look).pack()

    async def _stat(self, request: Request) -> bytes:
        if request.node == fuse.ROOT:
            links = 2 + len(self._asking.alive)
            return fuse.pack_attributes(Attributes(fuse.ROOT, FOLDER, links=links), SHORT_S)
        if streams.is_stream(request.node):
            raise OSError(errno.ESTALE, "what there is to know was in its name")
        node, path = self._places.find(request.node)
        if node < 0:
            entry = await self._look_at_home(-node, path)
            return fuse.pack_attributes(entry.attributes, SHORT_S)
        if not path:
            return fuse.pack_attributes(self._node_entry(node).attributes, SHORT_S)
        look, _ = await self._ask(node, path)
        return fuse.pack_attributes(self._entry(node, path, look).attributes, SHORT_S)

    async def _read_link(self, request: Request) -> bytes:
        look, _ = await self._ask(*self._places.find(request.node))
        if not look.target:
            raise OSError(errno.EINVAL, "no link")
        return look.target.encode(errors="surrogateescape")

    # -- /dev of visitors ------------------------------------------------------------------------

    def _is_own(self, home: int, path: str) -> bool:
        """Tell whether a name of a node's /dev is this node's own for those of it who are here."""
        above, _, name = path.rpartition("/")
        if above == TERMINALS:
            return name == "ptmx" or terminal_node(name) == self._asking.node
        return not above and path != TERMINALS and (home == self._asking.node or path in OWN)

    def _home_entry(self, home: int, path: str, look: Look) -> Entry:
        """Return the entry of what is another node's."""
        if not stat.S_ISDIR(look.mode):
            return self._entry(home, path, look)
        # A folder has one name only: it is another one than in that node's own folder.
        number = self._places.number_of(-home, path)
        attributes = Attributes(number, look.mode, 0, look.uid, look.gid, look.mtime_ns, links=2)
        return Entry(attributes, SHORT_S, SHORT_S)

    def _own_entry(self, home: int, path: str, status: os.stat_result) -> Entry:
        number = self._places.number_of(-home, path)
        flags = fuse.COVERED | (fuse.TERMINAL if path == TTY else 0)
        attributes = Attributes(
            number, status.st_mode, status.st_size, status.st_uid, status.st_gid, flags=flags,
            rdev=encode_device(status.st_rdev), links=status.st_nlink,
        )  # fmt: skip
        return Entry(attributes, LONG_S, LONG_S)

    async def _look_at_home(self, home: int, path: str) -> Entry:
        """Return the entry of a name in a node's /dev for those of it who are here."""
        if path in {"", TERMINALS}:
            return self._home_entry(home, path, _FOLDER)
        if self._is_own(home, path):
            status = await asyncio.to_thread((self._find_root() / path).lstat)
            return self._own_entry(home, path, status)
        node = home
        above, _, name = path.rpartition("/")
        if above == TERMINALS and not (node := terminal_node(name)):
            raise FileNotFoundError(errno.ENOENT, path)
        look, _ = await self._ask(node, path)
        return self._home_entry(node, path, look)

    async def _list_home(self, request: Request, home: int, path: str) -> list[tuple[str, Entry]]:
        def below(name: str) -> str:
            return f"{path}/{name}".lstrip("/")

        own = {}
        if path in {"", TERMINALS}:
            found = await asyncio.to_thread(_list_folder, self._find_root() / path)
            own = {
                name: self._own_entry(home, below(name), status)
                for name, status in found.items() if self._is_own(home, below(name))
            }  # fmt: skip
            if not path:
                own[TERMINALS] = self._home_entry(home, TERMINALS, _FOLDER)
        looks: list[Look] = []
        if home != self._asking.node:
            try:
                looks = await self._read_folder(
                    request.node, home, path, fresh=not request.reading[1]
                )
            except OSError:
                # Its node is lost; what is here can be used all the same.
                if not own:
                    raise
        others = {
            look.name: self._home_entry(home, below(look.name), look)
            for look in looks if not self._is_own(home, below(look.name))
        }  # fmt: skip
        return sorted({**others, **own}.items())

    # -- folders ---------------------------------------------------------------------------------

    async def _list(self, request: Request) -> bytes:
        _, offset, size = request.reading
        if request.node == fuse.ROOT:
            nodes = sorted(self._asking.alive)
            parts = [(f"node{node}", self._node_entry(node)) for node in nodes]
        else:
            node, above = self._places.find(request.node)
            if node < 0:
                return _fill(_render(await self._list_home(request, -node, above), offset), size)
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


def _list_folder(path: Path) -> dict[str, os.stat_result]:
    with os.scandir(path) as entries:
        found = {}
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                found[entry.name] = entry.stat(follow_symlinks=False)
        return found


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
