"""The keeper: a process that has this node's ends of FIFOs for others (native/fifokeeper.c).

It outlives this daemon, as the ends must, and what was read of them.
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import itertools
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from ssi.node.fifo.names import SIZE, pack_name, read_name
from ssi.node.keeper import Asked, Keeper
from ssi.node.root import SYSROOT

PROGRAM = SYSROOT / "usr/lib/ssi/fifokeeper"
SOCKET = Path("/run/ssi/fifos.sock")
MAX_DATA = 32 * 1024

_ORDER = struct.Struct("=IIQIIII")
_REPORT = struct.Struct("=IIQq")

OUR_IDS = 1 << 60
"""Ids of orders that nobody gave: closing."""


LOST = -errno.EIO, b""


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


class EndKeeper:
    """Ends, and what is done to them."""

    def __init__(self) -> None:
        self._keeper = Keeper(PROGRAM, SOCKET, str(SYSROOT), room=_REPORT.size + MAX_DATA)
        self._keeper.on_packet = self._hear
        self._keeper.on_lost = self._lose
        self._ids = itertools.count(OUR_IDS)
        self._asked: Asked[Wish, tuple[int, bytes]] = Asked(self._keeper)
        self.held: dict[int, Held] = {}
        """All ends, by their numbers."""
        self.on_close: Callable[[str], None] = lambda _: None
        """Called with a FIFO of which an end was closed."""

    async def run(self) -> None:
        """Keep it running, and connected, until cancelled."""
        await self._keeper.run()

    @property
    def is_told(self) -> bool:
        """Whether all ends are known."""
        return self._keeper.is_told

    async def wait_told(self) -> None:
        """Wait until all ends are known."""
        await self._keeper.wait_told()

    async def do(self, wish: Wish) -> tuple[int, bytes]:
        """Have it done; return the result, an errno if negative, and data.

        The same wish again has the same answer, until `done`.
        """
        return await self._asked.ask(wish.owner, wish.id, wish, pack_order(wish))

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
        self._asked.end(LOST, lambda whose, _: whose == owner)
        lost = {end: held for end, held in self.held.items() if held.owner == owner}
        for end in lost:
            del self.held[end]
        for name in {held.name for held in lost.values()}:
            self.on_close(name)

    def _send(self, wish: Wish) -> None:
        self._keeper.send(pack_order(wish))

    def _hear(self, packet: bytes, _fds: Sequence[int]) -> None:
        kind, owner, number, result = _REPORT.unpack_from(packet)
        data = packet[_REPORT.size :]
        match kind:
            case _Report.RESULT:
                wish = self._asked.answer(owner, number, (result, data))
                if wish and wish.order is Order.OPEN and result >= 0:
                    self.held[result] = Held(wish.owner, read_name(wish.data))
            case _Report.HELD:
                self.held[number] = Held(owner, read_name(data[:SIZE]))
            case _Report.TOLD:
                self._keeper.tell()

    def _lose(self) -> None:
        """It was killed, and all ends with it."""
        self.held.clear()
        self._asked.end(LOST)
