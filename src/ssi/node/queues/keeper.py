"""The keeper: a process that has this node's queues open for others (native/queuekeeper.c).

It outlives this daemon, as descriptors must, and what was received by them.
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import itertools
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from ssi.node.keeper import Asked, Keeper, close_all
from ssi.node.process.caller import Caller
from ssi.node.root import SYSROOT

PROGRAM = SYSROOT / "usr/lib/ssi/queuekeeper"
SOCKET = Path("/run/ssi/queues.sock")
MAX_TEXT = 32 * 1024
MAX_KEPT = 96 * 1024
MAX_GROUPS = 1024
FOREVER = -1

_ORDER = struct.Struct("=IIQIIIIqIIII")
_REPORT = struct.Struct("=IIQqII")
_NUMBER = struct.Struct("=Q")

OURS = 0
"""The owner of orders that nobody gave."""


class Order(enum.IntEnum):
    """Kinds of orders. Up to AWAIT they are answered, and remembered until DONE."""

    OPEN = 1
    UNLINK = 2
    SEND = 3
    RECEIVE = 4
    GETATTR = 5
    WATCH = 6
    NOTIFY = 7
    AWAIT = 8
    CANCEL = 9
    DONE = 10
    CLOSE = 11
    DROP = 12
    LOOK = 13
    RESTORE = 14


class Flag(enum.IntFlag):
    """Of an order."""

    NONBLOCK = 1


class _Report(enum.IntEnum):
    RESULT = 1
    HELD = 2
    TOLD = 3
    SHARED = 4
    GONE = 5


NOBODY = Caller(1, (0, 0, 0), (0, 0, 0), ())
"""By a descriptor nobody's IDs are asked for."""


@dataclasses.dataclass(frozen=True, slots=True)
class Wish:
    """An order; `owner` and `id` name it. The rest is as native/queuekeeper.h has it."""

    owner: int
    id: int
    order: Order
    end: int = 0
    value: int = 0
    size: int = 0
    flags: int = 0
    until: tuple[int, int] = (FOREVER, 0)
    caller: Caller = NOBODY
    data: bytes = b""

    def pack(self) -> bytes:
        """Return the packet."""
        groups = self.caller.groups[:MAX_GROUPS]
        head = _ORDER.pack(
            self.order, self.owner, self.id, self.end, self.value, self.size, self.flags,
            *self.until, self.caller.uids[1], self.caller.gids[1], len(groups),
        )  # fmt: skip
        return head + struct.pack(f"={len(groups)}I", *groups) + self.data


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it: a result, or a negative errno; a priority; and data."""

    result: int
    value: int = 0
    data: bytes = b""
    snapshot: bytes = b""
    """What the queue is now, if it is another."""


LOST = Outcome(-errno.EIO)
"""The keeper was killed, as when its node leaves."""


class QueueKeeper:
    """Orders to it, and what came of them."""

    def __init__(self) -> None:
        self._keeper = Keeper(PROGRAM, SOCKET, room=_REPORT.size + MAX_TEXT + MAX_KEPT)
        self._keeper.on_packet = self._hear
        self._keeper.on_lost = self._lose
        self._ids = itertools.count(1)
        self._asked: Asked[None, Outcome] = Asked(self._keeper)
        self.owners: set[int] = set()
        """Whom it may have something of."""
        self.shared: set[int] = set()
        """What queues that others have had open are called."""
        self.on_gone: Callable[[int], None] = lambda _: None
        """Called when nobody else can have one of them any more."""

    async def run(self) -> None:
        """Keep it running, and connected, until cancelled."""
        await self._keeper.run()

    async def wait_told(self) -> None:
        """Wait until it can be asked."""
        await self._keeper.wait_told()

    async def do(self, wish: Wish) -> Outcome:
        """Have it done. The same owner and id again have the same answer, until `done`."""
        self.owners.add(wish.owner)
        return await self._ask(wish)

    async def _ask(self, wish: Wish) -> Outcome:
        return await self._asked.ask(wish.owner, wish.id, None, wish.pack())

    async def close(self, owner: int, end: int) -> Outcome:
        """Close an end, if it is open."""
        return await self.do(Wish(owner, self._next(), Order.CLOSE, end=end))

    async def look(self, wanted: int, *, is_inode: bool = False) -> bytes:
        """Return what one of the shared queues is now, empty if it is none of them any more."""
        data, named = _NUMBER.pack(wanted), int(not is_inode)
        outcome = await self._ask(Wish(OURS, self._next(), Order.LOOK, value=named, data=data))
        return outcome.snapshot

    async def restore(self, snapshot: bytes, *, named: bool) -> int:
        """Make a queue anew, if it is not here; return 0 or a negative errno."""
        wish = Wish(OURS, self._next(), Order.RESTORE, value=int(named), data=snapshot)
        return (await self._ask(wish)).result

    def _next(self) -> int:
        # A daemon before this one may have asked by the same count.
        return 1 << 60 | int.from_bytes(os.urandom(5), "little") << 16 | next(self._ids) & 0xFFFF

    def cancel(self, owner: int, number: int) -> None:
        """Have an order that is under way end soon."""
        self._keeper.send(Wish(owner, number, Order.CANCEL).pack())

    def done(self, owner: int, number: int) -> None:
        """Its answer has arrived where it was wanted."""
        self._keeper.send(Wish(owner, number, Order.DONE).pack())

    def drop(self, owner: int) -> None:
        """Forget all that there is of a node that is dead."""
        self._keeper.send(Wish(owner, 0, Order.DROP).pack())
        self.owners.discard(owner)
        self._asked.end(LOST, lambda whose, _: whose == owner)

    def _hear(self, packet: bytes, fds: Sequence[int]) -> None:
        close_all(fds)
        kind, owner, number, result, value, length = _REPORT.unpack_from(packet)
        rest = packet[_REPORT.size :]
        match kind:
            case _Report.RESULT:
                outcome = Outcome(result, value, rest[:length], rest[length:])
                self._asked.answer(owner, number, outcome)
            case _Report.HELD:
                self.owners.add(owner)
            case _Report.TOLD:
                self._keeper.tell()
            case _Report.SHARED:
                self.shared.add(number)
            case _Report.GONE:
                self.shared.discard(number)
                self.on_gone(number)

    def _lose(self) -> None:
        """It was killed, and all descriptors with it."""
        self.shared.clear()
        self._asked.end(LOST)
