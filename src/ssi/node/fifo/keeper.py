"""The keeper: a process that has this node's ends of FIFOs for others (native/fifokeeper.c).

It outlives this daemon, as the ends must, and what was read of them.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import enum
import errno
import itertools
import logging
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from ssi.common.changes import Changes
from ssi.node.fifo.names import SIZE, pack_name, read_name
from ssi.node.processes import start_process
from ssi.node.root import SYSROOT
from ssi.node.waiting import wait_until

logger = logging.getLogger(__name__)

PROGRAM = SYSROOT / "usr/lib/ssi/fifokeeper"
SOCKET = Path("/run/ssi/fifos.sock")
CONNECT_S = 10.0
AGAIN_S = 0.5
MAX_DATA = 32 * 1024

_ORDER = struct.Struct("=IIQIIII")
_REPORT = struct.Struct("=IIQq")

OUR_IDS = 1 << 60
"""Ids of orders that nobody gave: closing."""


class Order(enum.IntEnum):
    """Kinds of orders. Up to WATCH they are answered, and remembered until DONE."""

    OPEN = 1
    READ = 2
    WRITE = 3
    IOCTL = 4
    WATCH = 5
    CANCEL = 6
    DONE = 7
    CLOSE = 8
    DROP = 9


class Flag(enum.IntFlag):
    """Of an order."""

    NONBLOCK = 1
    STANDS = 2


class _Report(enum.IntEnum):
    RESULT = 1
    HELD = 2
    TOLD = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Wish:
    """An order to be answered; `owner` and `id` name it."""

    owner: int
    id: int
    order: Order
    end: int = 0
    value: int = 0
    size: int = 0
    flags: int = 0
    data: bytes = b""


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """An end."""

    owner: int
    name: str


def pack_order(wish: Wish) -> bytes:
    """Return the packet."""
    head = _ORDER.pack(
        wish.order, wish.owner, wish.id, wish.end, wish.value & 0xFFFFFFFF, wish.size, wish.flags
    )
    return head + wish.data


class Keeper:
    """The connection with it."""

    def __init__(self, path: Path = SOCKET) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._told = False
        self._changes = Changes()
        self._ids = itertools.count(OUR_IDS)
        self._queue: collections.deque[bytes] = collections.deque()
        self._waiting: dict[tuple[int, int], tuple[Wish, asyncio.Future[tuple[int, bytes]]]] = {}
        self.held: dict[int, Held] = {}
        """All ends, by their numbers."""
        self.on_close: Callable[[str], None] = lambda _: None
        """Called with a FIFO of which an end was closed."""

    async def run(self) -> None:
        """Keep it running, and connected, until cancelled."""
        while True:
            await self._connect()
            await self._changes.wait_for(lambda: self._socket is None)
            logger.error("%s is gone", PROGRAM.name)
            await asyncio.sleep(AGAIN_S)

    async def _connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        if connection.connect_ex(os.fspath(self._path)):
            start_process([str(PROGRAM), str(self._path), str(SYSROOT)])
            if not await wait_until(
                lambda: not connection.connect_ex(os.fspath(self._path)), within_s=CONNECT_S
            ):
                logger.error("%s does not answer: see /run/ssi/daemons.log", PROGRAM)
                connection.close()
                return
        connection.setblocking(False)
        self._socket = connection
        self._told = False
        asyncio.get_running_loop().add_reader(connection, self._read)

    @property
    def is_told(self) -> bool:
        """Whether all ends are known."""
        return self._told

    async def wait_told(self) -> None:
        """Wait until all ends are known."""
        await self._changes.wait_for(lambda: self._told)

    async def do(self, wish: Wish) -> tuple[int, bytes]:
        """Have it done; return the result, an errno if negative, and data.

        The same wish again has the same answer, until `done`.
        """
        await self.wait_told()
        key = (wish.owner, wish.id)
        if key not in self._waiting:
            self._waiting[key] = wish, asyncio.get_running_loop().create_future()
            self._send(wish)
        # Another may wait for it: who asked first has asked again.
        return await asyncio.shield(self._waiting[key][1])

    async def open(
        self, owner: int, number: int, name: str, flags: int, *, stands: bool = False
    ) -> int:
        """Return a new end, or a negative errno."""
        result, _ = await self.do(
            Wish(
                owner, number, Order.OPEN, value=flags, data=pack_name(name),
                flags=Flag.STANDS if stands else 0,
            )
        )  # fmt: skip
        return result

    async def close(self, end: int) -> None:
        """Close an end, if it is open."""
        held = self.held.pop(end, None)
        await self.do(Wish(held.owner if held else 0, next(self._ids), Order.CLOSE, end=end))
        if held:
            self.on_close(held.name)

    def cancel(self, owner: int, number: int) -> None:
        """Have an order that is under way end soon."""
        self._send(Wish(owner, number, Order.CANCEL))

    def done(self, owner: int, number: int) -> None:
        """Its answer has arrived where it was wanted."""
        self._send(Wish(owner, number, Order.DONE))

    def drop(self, owner: int) -> None:
        """Forget all that there is of a node that is dead."""
        self._send(Wish(owner, 0, Order.DROP))
        for key in [key for key in self._waiting if key[0] == owner]:
            self._end(key, -errno.EIO)
        lost = {end: held for end, held in self.held.items() if held.owner == owner}
        for end in lost:
            del self.held[end]
        for name in {held.name for held in lost.values()}:
            self.on_close(name)

    def _send(self, wish: Wish) -> None:
        if self._socket:
            self._queue.append(pack_order(wish))
            self._flush()

    def _flush(self) -> None:
        """Send what it takes; it may be waiting for us to hear it."""
        assert self._socket
        loop = asyncio.get_running_loop()
        while self._queue:
            try:
                self._socket.send(self._queue[0])
            except BlockingIOError:
                loop.add_writer(self._socket, self._flush)
                return
            except ConnectionError:
                self._queue.clear()
                break
            self._queue.popleft()
        loop.remove_writer(self._socket)

    def _read(self) -> None:
        assert self._socket
        try:
            packet = self._socket.recv(_REPORT.size + MAX_DATA)
        except BlockingIOError:
            return
        except ConnectionError:
            packet = b""
        if not packet:
            self._lose()
            return
        kind, owner, number, result = _REPORT.unpack_from(packet)
        data = packet[_REPORT.size :]
        match kind:
            case _Report.RESULT:
                self._end((owner, number), result, data)
            case _Report.HELD:
                self.held[number] = Held(owner, read_name(data[:SIZE]))
            case _Report.TOLD:
                self._told = True
                self._changes.tell()

    def _end(self, key: tuple[int, int], result: int, data: bytes = b"") -> None:
        wish, waiting = self._waiting.pop(key, (None, None))
        if wish and wish.order is Order.OPEN and result >= 0:
            self.held[result] = Held(wish.owner, read_name(wish.data))
        if waiting and not waiting.done():
            waiting.set_result((result, data))

    def _lose(self) -> None:
        """It was killed, and all ends with it."""
        assert self._socket
        asyncio.get_running_loop().remove_reader(self._socket)
        asyncio.get_running_loop().remove_writer(self._socket)
        self._socket.close()
        self._socket, self._told = None, False
        self._queue.clear()
        self.held.clear()
        for key in list(self._waiting):
            self._end(key, -errno.EIO)
        self._changes.tell()
