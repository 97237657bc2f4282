"""The keeper of relayed sockets: a process that carries their bytes (native/relay.c).

It outlives this daemon, as the bytes must that are on their way.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import errno
import itertools
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from ssi.node.keeper import Keeper, close_all
from ssi.node.process.orders import MAX_DATA
from ssi.node.root import SYSROOT

PROGRAM = SYSROOT / "usr/lib/ssi/relay"
SOCKET = Path("/run/ssi/relay.sock")

_ORDER = struct.Struct("=IIQq32s")
_REPORT = struct.Struct("=IIQqQII32s")


class Order(enum.IntEnum):
    """Kinds of orders. Up to GIVE_BACK they are answered."""

    ADD = 1
    FREEZE = 2
    GIVE_BACK = 3
    GO_ON = 4
    END = 5
    ANSWER = 6


class _Report(enum.IntEnum):
    RESULT = 1
    HELD = 2
    TOLD = 3
    WANT = 4
    CANCEL = 5
    DONE = 6
    GONE = 7


class State(enum.IntEnum):
    """Of a relay."""

    RESTS = 1
    """Its process does not run yet."""
    RUNS = 2
    FREEZES = 3
    FROZEN = 4


@dataclasses.dataclass(slots=True)
class Relay:
    """One socket here."""

    number: int
    inode: int
    """The process's end."""
    handle: int
    """Of its far end; 0 if that is here as well."""
    state: State
    move: str = ""
    """For which it rests, or is frozen."""


@dataclasses.dataclass(frozen=True, slots=True)
class Want:
    """What is to be done at a far end."""

    relay: int
    number: int
    handle: int
    order: int
    value: int
    flags: int
    data: bytes


class RelayKeeper:
    """Relays, and what is done to them."""

    def __init__(self) -> None:
        self._keeper = Keeper(PROGRAM, SOCKET, room=_REPORT.size + MAX_DATA)
        self._keeper.on_packet = self._hear
        self._keeper.on_lost = self._lose
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[int, int, int]]] = {}
        self.relays: dict[int, Relay] = {}
        """All, by their numbers."""
        self.on_want: Callable[[Want], object] = lambda _: None
        self.on_cancel: Callable[[int], object] = lambda _: None
        """Called with the number of a Want."""
        self.on_done: Callable[[int], object] = lambda _: None
        """Called with the number of a Want whose answer has arrived."""

    async def run(self) -> None:
        """Keep it running, and connected, until cancelled."""
        await self._keeper.run()

    async def wait_told(self) -> None:
        """Wait until all relays are known."""
        await self._keeper.wait_told()

    # -- orders ----------------------------------------------------------------------------------

    async def add(self, handle: int, state: int, far: int, move: str) -> int:
        """Return a new socket, which rests; raises OSError.

        `state` and `far` are descriptors: of a file, and of what keeps the far end open, or is it.
        """
        _, inode, fd = await self._ask(Order.ADD, value=handle, move=move, fds=(state, far))
        relay = next(one for one in self.relays.values() if one.inode == inode)
        relay.handle, relay.move = handle, move
        return fd

    async def freeze(self, relay: Relay, state: int, near: int, move: str) -> None:
        """Have nothing under way, and all that is written into a file; raises OSError.

        `near` is the process's socket: messages that it has not received yet are taken from there.
        """
        relay.state, relay.move = State.FREEZES, move
        await self._ask(Order.FREEZE, relay.number, move=move, fds=(state, near))
        relay.state = State.FROZEN

    async def give_back(self, relay: Relay, state: int, near: int) -> None:
        """Give a socket what has not been read and written where it was; raises OSError."""
        await self._ask(Order.GIVE_BACK, relay.number, fds=(state, near))

    def go_on(self, relay: Relay) -> None:
        """Have bytes carried again."""
        relay.state, relay.move = State.RUNS, ""
        self._send(Order.GO_ON, relay.number)

    def end(self, relay: Relay) -> None:
        """Forget one of which nobody is to hear that it is closed."""
        self._send(Order.END, relay.number)

    def answer(self, want: Want, result: int, data: bytes) -> None:
        """Tell what came of it."""
        self._send(Order.ANSWER, want.relay, want.number, value=result, data=data)

    async def _ask(
        self, order: Order, relay: int = 0, *, value: int = 0, move: str = "", fds: Sequence[int]
    ) -> tuple[int, int, int]:
        """Return result, inode and descriptor."""
        await self.wait_told()
        number = next(self._ids)
        self._waiting[number] = future = asyncio.get_running_loop().create_future()
        # They are sent by and by, and are the caller's.
        mine = [os.dup(fd) for fd in fds]
        self._send(order, relay, number, value=value, move=move, fds=mine)
        result, inode, fd = await future
        if result < 0:
            raise OSError(-result, f"{self._keeper.name}: {os.strerror(-result)}")
        return result, inode, fd

    def _send(
        self, order: Order, relay: int, number: int = 0, *, value: int = 0, move: str = "",
        fds: Sequence[int] = (), data: bytes = b"",
    ) -> None:  # fmt: skip
        self._keeper.send(_ORDER.pack(order, relay, number, value, move.encode()) + data, fds)

    # -- reports ---------------------------------------------------------------------------------

    def _hear(self, packet: bytes, fds: Sequence[int]) -> None:
        kind, number, wish, result, handle, value, flags, move = _REPORT.unpack_from(packet)
        match kind:
            case _Report.RESULT:
                self._hear_result(wish, result, handle, fds)
            case _Report.HELD:
                name = move.rstrip(b"\0").decode()
                self.relays[number] = Relay(number, wish, handle, State(value), name)
            case _Report.TOLD:
                self._keeper.tell()
            case _Report.WANT:
                data = packet[_REPORT.size :]
                self.on_want(Want(number, wish, handle, value, result, flags, data))
            case _Report.CANCEL:
                self.on_cancel(wish)
            case _Report.DONE:
                self.on_done(wish)
            case _Report.GONE:
                self.relays.pop(number, None)

    def _hear_result(self, number: int, result: int, inode: int, fds: Sequence[int]) -> None:
        future = self._waiting.pop(number, None)
        if fds:
            # Known before anything else is heard of it.
            self.relays[result] = Relay(result, inode, 0, State.RESTS)
        if future and not future.done():
            future.set_result((result, inode, fds[0] if fds else -1))
        else:
            close_all(fds)

    def _lose(self) -> None:
        """It was killed, and all sockets with it."""
        self.relays.clear()
        for future in self._waiting.values():
            if not future.done():
                future.set_result((-errno.EIO, 0, -1))
        self._waiting.clear()
