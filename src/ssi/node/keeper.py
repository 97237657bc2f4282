"""The connection with a keeper: a program that has something for this daemon (native/keeper.h).

It outlives the daemon, as what it has must; whoever connects next is told all of it.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import socket
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from ssi.common.changes import Changes
from ssi.node.processes import start_process
from ssi.node.state.view import View
from ssi.node.waiting import wait_until

logger = logging.getLogger(__name__)

WishT = TypeVar("WishT")
AnswerT = TypeVar("AnswerT")

CONNECT_S = 60.0
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
        self._started: int | None = None
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
            self._reap()
            self._started = start_process([str(self._program), str(self._path), *self._arguments])
            if not await wait_until(
                lambda: not connection.connect_ex(os.fspath(self._path)), within_s=CONNECT_S
            ):
                logger.error("%s does not answer: see /run/ssi/daemons.log", self._program)
                connection.close()
                return
        connection.setblocking(False)
        self._socket = connection
        asyncio.get_running_loop().add_reader(connection, self._read)

    def _reap(self) -> None:
        """Leave no zombie of one that this daemon has started."""
        if self._started:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._started, os.WNOHANG)

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


class Asked(Generic[WishT, AnswerT]):
    """What a keeper has been asked, by owner and number, and has not answered yet.

    Who asks the same again, as a daemon that has begun anew, has the same answer.
    """

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._waiting: dict[tuple[int, int], tuple[WishT, asyncio.Future[AnswerT]]] = {}

    async def ask(
        self, owner: int, number: int, wish: WishT, packet: bytes, fds: Sequence[int] = ()
    ) -> AnswerT:
        """Have `packet` answered, which says `wish`; the descriptors go along, and are closed."""
        try:
            await self._keeper.wait_told()
        except asyncio.CancelledError:
            close_all(fds)
            raise
        key = (owner, number)
        if key not in self._waiting:
            self._waiting[key] = wish, asyncio.get_running_loop().create_future()
            self._keeper.send(packet, fds)
        else:
            close_all(fds)
        # Another may wait for it: who asked first has asked again.
        return await asyncio.shield(self._waiting[key][1])

    def answer(self, owner: int, number: int, answer: AnswerT) -> WishT | None:
        """Hear an answer; return what was wished, None if nobody waits for it any more."""
        wish, waiting = self._waiting.pop((owner, number), (None, None))
        if waiting and not waiting.done():
            waiting.set_result(answer)
        return wish

    def end(
        self, answer: AnswerT, which: Callable[[int, WishT], bool] = lambda _owner, _wish: True
    ) -> None:
        """Give this answer to all, or to those of which `which` tells: nobody else will."""
        for (owner, number), (wish, _) in list(self._waiting.items()):
            if which(owner, wish):
                self.answer(owner, number, answer)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)
