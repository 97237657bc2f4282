"""The keeper: it has this node's devices that others have open (native/devicekeeper.c).

It outlives this daemon, as they must, and what was read of them.
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import itertools
import struct
from collections.abc import Sequence
from pathlib import Path

from ssi.node.keeper import Asked, Keeper
from ssi.node.process.caller import Caller
from ssi.node.root import SYSROOT, USERLAND

PROGRAM = SYSROOT / "usr/lib/ssi/devicekeeper"
SOCKET = Path("/run/ssi/devices.sock")
MAX_DATA = 32 * 1024
MAX_GROUPS = 4096

_ORDER = struct.Struct("=IIQIIIIq")
_REPORT = struct.Struct("=IIQqII")
_CALLER = struct.Struct("=III")

OUR_IDS = 1 << 60
"""Ids of orders that nobody gave: closing."""


class Order(enum.IntEnum):
    """Kinds of orders. Up to SYNC they are answered, and remembered until DONE."""

    OPEN = 1
    READ = 2
    WRITE = 3
    IOCTL = 4
    IOCTL_VALUE = 5
    WATCH = 6
    SEEK = 7
    SYNC = 8
    CANCEL = 9
    DONE = 10
    CLOSE = 11
    DROP = 12


NONBLOCK = 1
"""A flag of an order."""


class _Report(enum.IntEnum):
    RESULT = 1
    HELD = 2
    TOLD = 3
    GONE = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Wish:
    """An order to be answered; `owner` and `id` name it. `end` is 0 while it is opened."""

    owner: int
    id: int
    order: Order
    end: int = 0
    value: int = 0
    size: int = 0
    flags: int = 0
    offset: int = 0
    data: bytes = b""


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """What came of it: a negative errno, or what there is."""

    result: int
    data: bytes = b""
    streams: bool = False
    """Of what was opened: it has no offsets."""


LOST = Done(-errno.EIO)


def pack_order(wish: Wish) -> bytes:
    """Return the packet."""
    head = _ORDER.pack(
        wish.order, wish.owner, wish.id, wish.end, wish.value & 0xFFFFFFFF, wish.size, wish.flags,
        wish.offset,
    )  # fmt: skip
    return head + wish.data


def pack_opening(caller: Caller, path: str) -> bytes:
    """Return the data of an OPEN: who opens what below /dev."""
    groups = caller.groups[:MAX_GROUPS]
    head = _CALLER.pack(caller.uids[1], caller.gids[1], len(groups))
    return head + struct.pack(f"={len(groups)}I", *groups) + path.encode(errors="surrogateescape")


class DeviceKeeper:
    """Ends, and what is done to them."""

    def __init__(self) -> None:
        self._keeper = Keeper(PROGRAM, SOCKET, str(USERLAND), room=_REPORT.size + MAX_DATA)
        self._keeper.on_packet = self._hear
        self._keeper.on_lost = self._lose
        self._ids = itertools.count(OUR_IDS)
        self._asked: Asked[Wish, Done] = Asked(self._keeper)
        self._owners: dict[int, int] = {}
        """Of all ends."""

    @property
    def owners(self) -> set[int]:
        """Whom it has something of."""
        return set(self._owners.values())

    async def run(self) -> None:
        """Keep it running, and connected, until cancelled."""
        await self._keeper.run()

    async def wait_told(self) -> None:
        """Wait until all ends are known."""
        await self._keeper.wait_told()

    async def do(self, wish: Wish, fds: Sequence[int] = ()) -> Done:
        """Have it done. The same wish again has the same answer, until `done`.

        An OPEN may have a descriptor of what is open already; it is closed here.
        """
        return await self._asked.ask(wish.owner, wish.id, wish, pack_order(wish), fds)

    async def close(self, owner: int, end: int) -> None:
        """Close an end, if it is open."""
        await self.do(Wish(owner, next(self._ids), Order.CLOSE, end=end))

    def cancel(self, owner: int, number: int, end: int) -> None:
        """Have an order that is under way end soon."""
        self._send(Wish(owner, number, Order.CANCEL, end=end))

    def done(self, owner: int, number: int, end: int) -> None:
        """Its answer has arrived where it was wanted."""
        self._send(Wish(owner, number, Order.DONE, end=end))

    def drop(self, owner: int) -> None:
        """Forget all that there is of a node that is dead."""
        self._send(Wish(owner, 0, Order.DROP))
        self._asked.end(LOST, lambda whose, _: whose == owner)

    def _send(self, wish: Wish) -> None:
        self._keeper.send(pack_order(wish))

    def _hear(self, packet: bytes, _fds: Sequence[int]) -> None:
        kind, owner, number, result, end, streams = _REPORT.unpack_from(packet)
        match kind:
            case _Report.RESULT:
                done = Done(result, packet[_REPORT.size :], bool(streams))
                wish = self._asked.answer(owner, number, done)
                if wish and wish.order is Order.OPEN and result >= 0:
                    self._owners[result] = wish.owner
            case _Report.HELD:
                self._owners[end] = owner
            case _Report.TOLD:
                self._keeper.tell()
            case _Report.GONE:
                self._owners.pop(end, None)
                # What was ordered of it and has no answer has none any more.
                self._asked.end(LOST, lambda _, wish: wish.end == end)

    def _lose(self) -> None:
        """It was killed, and all ends with it."""
        self._owners.clear()
        self._asked.end(LOST)
