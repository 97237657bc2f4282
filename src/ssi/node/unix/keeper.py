"""The keeper: a process that has connections whose ends are on two nodes (native/unixkeeper.c).

It outlives this daemon: who is connected hears nothing of that.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import errno
import os
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from ssi.node.keeper import Keeper, close_all
from ssi.node.peer import Peer
from ssi.node.root import SYSROOT, USERLAND
from ssi.node.unix.names import NAMELESS, SocketName

PROGRAM = SYSROOT / "usr/lib/ssi/unixkeeper"
SOCKET = Path("/run/ssi/unix.sock")

MOST_GROUPS = 1024
"""Of somebody as whom is connected; further ones do not count."""

_ORDER = struct.Struct("=IIQQIIIiIII")
_REPORT = struct.Struct("=IIQq")
_CLIENT = struct.Struct("=iI")
_PEER = struct.Struct("=iII")
_NUMBER = struct.Struct("=I")


class Role(enum.IntEnum):
    """What a connection was made by: this node's end is the client or the server."""

    CONNECT = 1
    LISTEN = 2
    STREAM = 3
    """By nothing: it is an order about a stream that was passed on."""


class _Order(enum.IntEnum):
    CONNECT = 1
    LISTEN = 2
    CARRY = 3
    DROP = 4
    ALIVE = 5
    TAKE = 6
    TAKEN = 7
    FINISH = 8


class _Report(enum.IntEnum):
    RESULT = 1
    GONE = 2
    TOLD = 3


_NONBLOCK = 1

Key = tuple[int, int]
"""A role and an id."""


@dataclasses.dataclass(frozen=True, slots=True)
class Wish:
    """A connection to be made, as whom, and with which node in one of its lives."""

    role: Role
    id: int
    owner: int
    kind: int
    peer: Peer
    number: int = 0
    nonblock: bool = False
    name: SocketName = NAMELESS
    """Of the client's socket."""

    @property
    def key(self) -> Key:
        """What it is called."""
        return self.role, self.id


def _pack_groups(groups: Sequence[int]) -> bytes:
    return b"".join(_NUMBER.pack(group) for group in groups[:MOST_GROUPS])


def _pack_order(kind: _Order, wish: Wish, data: bytes = b"", groups: Sequence[int] = ()) -> bytes:
    packed = _pack_groups(groups)
    return (
        _ORDER.pack(
            kind, wish.role, wish.id, wish.number, wish.owner, wish.kind,
            _NONBLOCK if wish.nonblock else 0, wish.peer.pid, wish.peer.uid, wish.peer.gid,
            len(packed) // _NUMBER.size,
        )
        + data + packed
    )  # fmt: skip


_NOBODY = Peer(0, 0, 0, ())


class UnixKeeper:
    """Connections, and how they are made."""

    def __init__(self) -> None:
        room = _REPORT.size + _PEER.size + MOST_GROUPS * _NUMBER.size
        self._keeper = Keeper(PROGRAM, SOCKET, str(SYSROOT), str(USERLAND), room=room)
        self._keeper.on_packet = self._hear
        self._keeper.on_lost = self._lose
        self._waiting: dict[Key, asyncio.Future[tuple[int, bytes, Sequence[int]]]] = {}
        self.on_gone: Callable[[int], None] = lambda _id: None
        """Called with the id of a client's connection that has ended."""

    async def run(self) -> None:
        """Keep it running, and connected, until cancelled."""
        await self._keeper.run()

    async def wait_told(self) -> None:
        """Wait until it is there."""
        await self._keeper.wait_told()

    async def connect(self, wish: Wish, file: bytes) -> Peer:
        """Connect to what is bound to a file; return who listens. Raises OSError."""
        packet = _pack_order(_Order.CONNECT, wish, file + wish.name.pack(), wish.peer.groups)
        data, _ = await self._do(wish, packet)
        if len(data) < _PEER.size:
            return _NOBODY
        pid, uid, gid = _PEER.unpack_from(data)
        groups = tuple(group for (group,) in _NUMBER.iter_unpack(data[_PEER.size :]))
        return Peer(pid, uid, gid, groups)

    async def listen(self, wish: Wish, client: Peer, line: socket.socket) -> None:
        """Be what a client of this node finds; `line` leads to the other keeper. Raises OSError."""
        data = _CLIENT.pack(client.pid, client.uid)
        packet = _pack_order(_Order.LISTEN, wish, data, wish.peer.groups)
        await self._do(wish, packet, line)

    async def _do(
        self, wish: Wish, packet: bytes, line: socket.socket | None = None
    ) -> tuple[bytes, Sequence[int]]:
        await self.wait_told()
        future: asyncio.Future[tuple[int, bytes, Sequence[int]]] = (
            asyncio.get_running_loop().create_future()
        )
        self._waiting[wish.key] = future
        try:
            self._keeper.send(packet, [os.dup(line.fileno())] if line else [])
            error, data, fds = await future
        except asyncio.CancelledError:
            self.drop(wish)
            raise
        finally:
            self._waiting.pop(wish.key, None)
        if error:
            raise OSError(error, os.strerror(error))
        return data, fds

    async def take(self, owner: int, stream: int) -> int:
        """Return a descriptor of what was told to `owner` by this number; raises OSError."""
        wish = Wish(Role.STREAM, stream, owner, 0, _NOBODY)
        _, fds = await self._do(wish, _pack_order(_Order.TAKE, wish))
        if not fds:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return fds[0]

    def end(self, owner: int, stream: int) -> None:
        """Close it: it is open for its owner."""
        wish = Wish(Role.STREAM, stream, owner, 0, _NOBODY)
        self._keeper.send(_pack_order(_Order.TAKEN, wish))

    def carry(self, wish: Wish, line: socket.socket) -> None:
        """Have what is connected go on by a line to the other keeper."""
        self._keeper.send(_pack_order(_Order.CARRY, wish), [os.dup(line.fileno())])

    def finish(self, known: int) -> None:
        """End what stands for who receives datagrams, once those that were sent have gone."""
        wish = Wish(Role.LISTEN, known, 0, socket.SOCK_DGRAM, _NOBODY)
        self._keeper.send(_pack_order(_Order.FINISH, wish))

    def drop(self, wish: Wish) -> None:
        """End it: nobody waits for it any more."""
        self._keeper.send(_pack_order(_Order.DROP, wish))

    def tell_alive(self, owners: Sequence[int]) -> None:
        """End what others have than these."""
        nothing = Wish(Role.CONNECT, 0, 0, 0, _NOBODY)
        data = b"".join(map(_NUMBER.pack, owners))
        self._keeper.send(_pack_order(_Order.ALIVE, nothing, data))

    def _hear(self, packet: bytes, fds: Sequence[int]) -> None:
        kind, role, number, result = _REPORT.unpack_from(packet)
        if kind == _Report.RESULT:
            future = self._waiting.get((role, number))
            if future and not future.done():
                future.set_result((result, packet[_REPORT.size :], fds))
                return
            close_all(fds)
        elif kind == _Report.TOLD:
            self._keeper.tell()
        elif role == Role.LISTEN:
            self.on_gone(number)

    def _lose(self) -> None:
        """It was killed, and all connections with it."""
        for future in self._waiting.values():
            if not future.done():
                future.set_result((errno.ECONNRESET, b"", ()))
