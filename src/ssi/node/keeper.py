"""The connection with a keeper: a program that has something for this daemon (native/keeper.h).

It outlives the daemon, as what it has must; whoever connects next is told all of it.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import os
import socket
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from ssi.common.changes import Changes
from ssi.node.processes import start_process
from ssi.node.state.view import View
from ssi.node.waiting import wait_until

logger = logging.getLogger(__name__)

CONNECT_S = 10.0
AGAIN_S = 0.5


def owner_of(view: View, node: int) -> int:
    """Return what keepers call a node, in one of its lives."""
    return zlib.crc32(view.boot_of(node).encode()) & 0xFFFFFF00 | node


class Keeper:
    """The program, kept running, and packets to and from it."""

    def __init__(self, program: Path, path: Path, *arguments: str, room: int) -> None:
        """Name its socket; `room` is the size of the largest packet that it sends, in bytes."""
        self._program = program
        self._path = path
        self._arguments = arguments
        self._room = room
        self._socket: socket.socket | None = None
        self._told = False
        self._changes = Changes()
        self._queue: collections.deque[tuple[bytes, Sequence[int]]] = collections.deque()
        self.on_packet: Callable[[bytes, Sequence[int]], None] = lambda _packet, fds: close_all(fds)
        """Called with each packet and the descriptors in it, which are the callee's."""
        self.on_lost: Callable[[], None] = lambda: None
        """Called when it was killed, and what it had with it."""

    @property
    def name(self) -> str:
        """Return the program's name."""
        return self._program.name

    async def run(self) -> None:
        """Keep it running, and connected, until cancelled."""
        while True:
            await self._connect()
            await self._changes.wait_for(lambda: self._socket is None)
            logger.error("%s is gone", self.name)
            await asyncio.sleep(AGAIN_S)

    async def _connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        if connection.connect_ex(os.fspath(self._path)):
            start_process([str(self._program), str(self._path), *self._arguments])
            if not await wait_until(
                lambda: not connection.connect_ex(os.fspath(self._path)), within_s=CONNECT_S
            ):
                logger.error("%s does not answer: see /run/ssi/daemons.log", self._program)
                connection.close()
                return
        connection.setblocking(False)
        self._socket = connection
        asyncio.get_running_loop().add_reader(connection, self._read)

    @property
    def is_told(self) -> bool:
        """Whether all that it has is known."""
        return self._told

    async def wait_told(self) -> None:
        """Wait until all that it has is known."""
        await self._changes.wait_for(lambda: self._told)

    def tell(self) -> None:
        """All that it has is known now."""
        self._told = True
        self._changes.tell()

    def send(self, packet: bytes, fds: Sequence[int] = ()) -> None:
        """Send a packet, by and by; the descriptors are closed then."""
        if self._socket:
            self._queue.append((packet, fds))
            self._flush()
        else:
            close_all(fds)

    def _flush(self) -> None:
        """Send what it takes; it may be waiting for us to hear it."""
        assert self._socket
        loop = asyncio.get_running_loop()
        while self._queue:
            packet, fds = self._queue[0]
            try:
                socket.send_fds(self._socket, [packet], fds)
            except BlockingIOError:
                loop.add_writer(self._socket, self._flush)
                return
            except ConnectionError:
                # It is seen as well where it is heard, which clears the queue.
                break
            self._queue.popleft()
            close_all(fds)
        loop.remove_writer(self._socket)

    def _read(self) -> None:
        assert self._socket
        try:
            packet, fds, _, _ = socket.recv_fds(
                self._socket, self._room, 1, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except ConnectionError:
            packet, fds = b"", []
        if packet:
            self.on_packet(packet, fds)
        else:
            self._lose()

    def _lose(self) -> None:
        assert self._socket
        asyncio.get_running_loop().remove_reader(self._socket)
        asyncio.get_running_loop().remove_writer(self._socket)
        self._socket.close()
        self._socket, self._told = None, False
        for _, fds in self._queue:
            close_all(fds)
        self._queue.clear()
        self.on_lost()
        self._changes.tell()


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)
