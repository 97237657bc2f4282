"""The keeper: a process that does to this node's objects what others want (native/ipckeeper.c).

It outlives this daemon, as what was received must, and what is undone when a process ends.
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import itertools
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.wire import Message
from ssi.node.keeper import Asked, Keeper, close_all
from ssi.node.process.caller import Caller
from ssi.node.root import SYSROOT

PROGRAM = SYSROOT / "usr/lib/ssi/ipckeeper"
SOCKET = Path("/run/ssi/ipc.sock")
MAX_DATA = 64 * 1024
MAX_SNAPSHOT = 48 * 1024
MAX_GROUPS = 1024

_ORDER = struct.Struct("=IIQIi3qIIIII")
_REPORT = struct.Struct("=IIQqI")

MAX_NUMBER = 2**64 - 1
OURS = 0
"""The owner of orders that nobody gave."""


class Kind(enum.IntEnum):
    """Of objects."""

    SEMAPHORES = 0
    QUEUE = 1
    MEMORY = 2


class Call(enum.IntEnum):
    """Which system call is made."""

    SEMGET = 1
    MSGGET = 2
    SHMGET = 3
    SEMOP = 4
    MSGSND = 5
    MSGRCV = 6
    SEMCTL = 7
    MSGCTL = 8
    SHMCTL = 9


GETS = {Kind.SEMAPHORES: Call.SEMGET, Kind.QUEUE: Call.MSGGET, Kind.MEMORY: Call.SHMGET}
CONTROLS = {Kind.SEMAPHORES: Call.SEMCTL, Kind.QUEUE: Call.MSGCTL, Kind.MEMORY: Call.SHMCTL}


class _Order(enum.IntEnum):
    DO = 1
    RESTORE = 2
    CANCEL = 3
    DONE = 4
    DROP = 5
    ENDED = 6


class _Report(enum.IntEnum):
    RESULT = 1
    HELD = 2
    TOLD = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Wish:
    """A system call in somebody's name; the words are as native/ipckeeper.h has them."""

    call: Call
    object: int
    caller: Caller
    words: tuple[int, int, int] = (0, 0, 0)
    data: bytes = b""

    def dump(self) -> Message:
        """Return it as a message."""
        return {
            "call": int(self.call), "object": self.object, "caller": self.caller.dump(),
            "words": list(self.words), "data": wire.put_bytes(self.data),
        }  # fmt: skip

    @classmethod
    def load(cls, message: Message) -> Wish:
        """Read it from a message, or raise ProtocolError."""
        words = wire.get_ints(message, "words", -(2**63), 2**63 - 1)
        data = wire.get_bytes(message, "data")
        if len(words) != 3 or len(data) > MAX_DATA - 4 * MAX_GROUPS:
            raise ProtocolError("a system call has three words and some data")
        return cls(
            Call(wire.get_int(message, "call", 1, max(Call))),
            wire.get_int(message, "object", -(2**31), 2**31 - 1),
            Caller.load(wire.get_object(message, "caller")), (words[0], words[1], words[2]), data,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it: a result, or a negative errno; and what the object is now, if wanted."""

    result: int
    data: bytes = b""
    snapshot: bytes = b""

    def dump(self) -> Message:
        """Return it as a message."""
        return {
            "result": self.result, "data": wire.put_bytes(self.data),
            "snapshot": wire.put_bytes(self.snapshot),
        }  # fmt: skip

    @classmethod
    def load(cls, message: Message) -> Outcome:
        """Read it from a message, or raise ProtocolError."""
        return cls(
            wire.get_int(message, "result", -4095, 2**31), wire.get_bytes(message, "data"),
            wire.get_bytes(message, "snapshot"),
        )  # fmt: skip


LOST = Outcome(-errno.EIDRM)
GONE = Outcome(-errno.EINTR)
"""The keeper was killed, as when its node leaves; who wanted something asks again."""

ROOT = Caller(1, (0, 0, 0), (0, 0, 0), ())
"""In whose name this daemon asks."""


class IpcKeeper:
    """Orders to it, and what came of them."""

    def __init__(self) -> None:
        self._keeper = Keeper(PROGRAM, SOCKET, room=_REPORT.size + MAX_DATA + MAX_SNAPSHOT)
        self._keeper.on_packet = self._hear
        self._keeper.on_lost = self._lose
        self._ids = itertools.count(1)
        self._asked: Asked[None, Outcome] = Asked(self._keeper)
        self.held: set[tuple[int, int]] = set()
        """Owners and their processes that have something to be undone here."""

    async def run(self) -> None:
        """Keep it running, and connected, until cancelled."""
        await self._keeper.run()

    async def wait_told(self) -> None:
        """Wait until it can be asked."""
        await self._keeper.wait_told()

    async def do(self, owner: int, number: int, wish: Wish, *, snapshot: bool = False) -> Outcome:
        """Have it done. The same owner and number again have the same answer, until `done`."""
        groups = wish.caller.groups[:MAX_GROUPS]
        head = _ORDER.pack(
            _Order.DO, owner, number, wish.call, wish.object, *wish.words, int(snapshot),
            wish.caller.pid, wish.caller.uids[1], wish.caller.gids[1], len(groups),
        )  # fmt: skip
        packed = struct.pack(f"={len(groups)}I", *groups)
        return await self._ask(owner, number, head + packed + wish.data)

    async def look(self, wish: Wish) -> Outcome:
        """Have done at once what only this daemon wants to know or do."""
        number = self._next()
        outcome = await self.do(OURS, number, wish)
        self.done(OURS, number)
        return outcome

    async def restore(self, snapshot: bytes) -> int:
        """Make an object anew; return its identifier, or a negative errno."""
        number = self._next()
        outcome = await self._ask(OURS, number, self._pack(_Order.RESTORE, OURS, number) + snapshot)
        self.done(OURS, number)
        return outcome.result

    def _next(self) -> int:
        # A daemon before this one may have asked by the same count.
        return int.from_bytes(os.urandom(6), "little") << 16 | next(self._ids) & 0xFFFF

    async def _ask(self, owner: int, number: int, packet: bytes) -> Outcome:
        return await self._asked.ask(owner, number, None, packet)

    @staticmethod
    def _pack(order: _Order, owner: int, number: int = 0, pid: int = 0) -> bytes:
        return _ORDER.pack(order, owner, number, 0, 0, 0, 0, 0, 0, pid, 0, 0, 0)

    def cancel(self, owner: int, number: int) -> None:
        """Have an order that is under way end soon."""
        self._keeper.send(self._pack(_Order.CANCEL, owner, number))

    def done(self, owner: int, number: int) -> None:
        """Its answer has arrived where it was wanted."""
        self._keeper.send(self._pack(_Order.DONE, owner, number))

    def end(self, owner: int, pid: int) -> None:
        """A process has ended: what it has to undo is undone."""
        self.held.discard((owner, pid))
        self._keeper.send(self._pack(_Order.ENDED, owner, pid=pid))

    def drop(self, owner: int) -> None:
        """Forget all that there is of a node that is dead; its processes' undo is done."""
        self._keeper.send(self._pack(_Order.DROP, owner))
        self.held = {held for held in self.held if held[0] != owner}
        self._asked.end(LOST, lambda whose, _: whose == owner)

    def _hear(self, packet: bytes, fds: Sequence[int]) -> None:
        close_all(fds)
        kind, owner, number, result, length = _REPORT.unpack_from(packet)
        rest = packet[_REPORT.size :]
        match kind:
            case _Report.RESULT:
                self._asked.answer(owner, number, Outcome(result, rest[:length], rest[length:]))
            case _Report.HELD:
                self.held.add((owner, number))
            case _Report.TOLD:
                self._keeper.tell()

    def _lose(self) -> None:
        """It was killed, and has undone all that there was."""
        self.held.clear()
        self._asked.end(GONE)
