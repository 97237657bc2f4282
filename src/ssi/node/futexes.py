"""Futexes in files of the root: who waits for one on another node is woken as well.

Semaphores and mutexes that processes share are words of a file that all have mapped, and the same
on all nodes; but FUTEX_WAKE finds only who waits in its own kernel. The kernel tells of each wake
by which fewer were woken than were to be (image/kernel/patches/futex-elsewhere.patch), and
forgets it when all other nodes have done it: a daemon that is killed in between is told again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import struct
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import NodeLost, SsiError
from ssi.common.wire import Message
from ssi.node.fifo.names import pack_name, read_name
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.launcher import Launcher
from ssi.node.process.asking import Asking
from ssi.node.root import SYSROOT
from ssi.node.tasks import Tasks

logger = logging.getLogger(__name__)

DEVICE = Path("/dev/futexes")
KEY = "futexes"
MOST_AT_ONCE = 16

_OF, _DONE, _WAKE = 0x4601, 0x40084602, 0x40184603
_TOLD = struct.Struct("=QQII40s")
_NUMBER = struct.Struct("=Q")
_HERE = struct.Struct("=QiIII")

_LARGEST = 2**63 - 1
_MASK = 2**32 - 1


class Futexes:
    """Those of this node."""

    def __init__(self, asking: Asking, ics: Ics, launcher: Launcher) -> None:
        self._asking = asking
        self._launcher = launcher
        self._fd = -1
        self._tasks = Tasks()
        self._under_way = 0
        self._ready = asyncio.Event()
        ics.serve("futex-wake", self._answer_wake)

    async def run(self) -> None:
        """Pass wakes on, until cancelled."""
        await self._launcher.wait_connected()
        fd = self._launcher.kept.pop(KEY, None)
        if fd is None:
            fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            self._launcher.keep(KEY, fd)
        await asyncio.to_thread(_listen, fd)
        self._fd = fd
        self._ready.set()
        asyncio.get_running_loop().add_reader(fd, self._read)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            asyncio.get_running_loop().remove_reader(fd)

    def _read(self) -> None:
        if self._under_way >= MOST_AT_ONCE:
            # What comes meanwhile the kernel puts together.
            asyncio.get_running_loop().remove_reader(self._fd)
            return
        with contextlib.suppress(BlockingIOError):
            told = os.read(self._fd, _TOLD.size)
            self._under_way += 1
            self._tasks.spawn(self._pass_on(told))

    async def _pass_on(self, told: bytes) -> None:
        number, place, count, bitset, handle = _TOLD.unpack(told)
        words = {"name": read_name(handle), "place": place, "count": count, "bitset": bitset}
        try:
            others = self._asking.alive - {self._asking.node}
            await asyncio.gather(*(self._wake_on(node, words) for node in others))
            fcntl.ioctl(self._fd, _DONE, _NUMBER.pack(number))
        finally:
            self._under_way -= 1
            asyncio.get_running_loop().add_reader(self._fd, self._read)

    async def _wake_on(self, node: int, words: Message) -> None:
        try:
            await self._asking.ask(node, "futex-wake", words)
        except NodeLost:
            pass  # and who waited there
        except SsiError as error:
            # Or the kernel would keep it for ever: asked again, the answer would be the same.
            logger.warning("node%d: waking who waits for a futex: %s", node, error)

    async def _answer_wake(self, call: Call) -> Message:
        name = wire.get_text(call.body, "name")
        place = wire.get_int(call.body, "place", 0, _LARGEST)
        count = wire.get_int(call.body, "count", 0, _MASK >> 1)
        bitset = wire.get_int(call.body, "bitset", 1, _MASK)
        await self._ready.wait()
        await asyncio.to_thread(self._wake, name, place, count, bitset)
        return {}

    def _wake(self, name: str, place: int, count: int, bitset: int) -> None:
        try:
            file = _open_name(name)
        except OSError as error:
            # It is gone, and so is who might have waited.
            if error.errno != errno.ESTALE:
                logger.warning("a futex of %s: %s", name, error)
            return
        try:
            fcntl.ioctl(self._fd, _WAKE, _HERE.pack(place, file, count, bitset, 0))
        finally:
            os.close(file)


def _listen(device: int) -> None:
    root = os.open(SYSROOT, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, _OF, root)
    finally:
        os.close(root)


def _open_name(name: str) -> int:
    """Return a descriptor of a file of the root, by its handle; raises OSError."""
    packed = pack_name(name)
    kind, words = struct.unpack_from("=II", packed)
    handle = struct.pack("=Ii", words * 4, kind) + packed[8:]
    libc = ctypes.CDLL(None, use_errno=True)
    root = os.open(SYSROOT, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        file = libc.open_by_handle_at(root, handle, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    finally:
        os.close(root)
    if file < 0:
        raise OSError(ctypes.get_errno(), "open_by_handle_at")
    return int(file)
