"""The filter's listener: system calls that the kernel holds until we say what becomes of them.

Which they are is in native/filter.h. The launcher keeps the descriptor, so calls that come while
this daemon is restarted wait for the next one. The kernel tells of a call once: it is received into
a file in RAM, where the next daemon finds those that this one has not answered.
"""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import errno
import fcntl
import logging
import mmap
import os
import select
import struct
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from ssi.common.changes import Changes
from ssi.node.launcher import LISTENER, Launcher
from ssi.node.process.caller import write_memory

logger = logging.getLogger(__name__)

# linux/seccomp.h
RECEIVE = 0xC0502100
SEND = 0xC0182101
IS_VALID = 0x40082102
SIGNALLED = 0x40082105
"""image/kernel/patches/seccomp-tell-signals.patch"""
PUT = 0x40182103
SENDS = 2
CONTINUE = 1

_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")
_ID = struct.Struct("=Q")
_PUT = struct.Struct("=QIIII")

_INT = 1 << 32

FILE = Path("/run/ssi/calls")
SLOTS = 1024
"""So many calls may be under way; more wait in the kernel."""


def as_int(argument: int) -> int:
    """Return what the kernel makes of an argument that is an int."""
    value = argument & (_INT - 1)
    return value - _INT if value >= _INT >> 1 else value


@dataclasses.dataclass(frozen=True, slots=True)
class HeldCall:
    """A system call that waits."""

    id: int
    thread: int
    """Who calls: a thread, by its number in this node."""
    number: int
    arguments: tuple[int, ...]

    def int_at(self, index: int) -> int:
        """Return an argument that is an int."""
        return as_int(self.arguments[index])


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of it: a result, an error number, or (neither) the kernel goes on with it."""

    result: int = 0
    error: int = 0
    goes_on: bool = False
    written: tuple[int, bytes] | None = None
    """What the caller is to find in its memory, and at which address."""
    fd: int = -1
    """A descriptor of ours that it is to have a duplicate of, whose number is the result."""
    data: bytes = b""
    """What came of it besides, of which the judge makes `written`."""
    settled: Callable[[], object] | None = None
    """Called when it has been answered."""


GO_ON = Verdict(goes_on=True)


class Slots:
    """The file: a slot for each call that is under way, zeroes in the others."""

    def __init__(self, path: Path = FILE) -> None:
        size = SLOTS * _NOTIFICATION.size
        with path.open("a+b") as file:
            file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)
        # The kernel itself writes there: no moment in which a call is nowhere.
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._ioctl = ctypes.CDLL(None, use_errno=True).ioctl
        self._free = [slot for slot in range(SLOTS) if self._read(slot) is None]

    def _read(self, slot: int) -> HeldCall | None:
        fields = _NOTIFICATION.unpack_from(self._map, slot * _NOTIFICATION.size)
        call_id, thread, _, number, _, _, *arguments = fields
        return HeldCall(call_id, thread, number, tuple(arguments)) if call_id else None

    def list_left(self) -> Iterator[tuple[int, HeldCall]]:
        """Yield the calls that an earlier daemon has not answered."""
        for slot in range(SLOTS):
            if call := self._read(slot):
                yield slot, call

    def receive(self, fd: int) -> tuple[int, HeldCall] | None:
        """Return the next call, None if there is none any more or no slot; raises OSError."""
        if not self._free:
            return None
        slot = self._free[-1]
        place = ctypes.c_void_p(self._address + slot * _NOTIFICATION.size)
        if self._ioctl(fd, ctypes.c_ulong(RECEIVE), place) < 0:
            number = ctypes.get_errno()
            # ENOENT: the caller was killed before we came.
            if number in {errno.ENOENT, errno.EINTR}:
                return None
            raise OSError(number, os.strerror(number))
        call = self._read(slot)
        if call is None:
            return None
        self._free.pop()
        return slot, call

    def release(self, slot: int) -> None:
        """The call in `slot` has been answered."""
        size = _NOTIFICATION.size
        self._map[slot * size : (slot + 1) * size] = bytes(size)
        self._free.append(slot)

    @property
    def full(self) -> bool:
        """Whether no slot is free."""
        return not self._free


Judge = Callable[[HeldCall], Awaitable[Verdict]]


class Listener:
    """Takes calls and has them judged, each by a task of its own."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._fd = -1
        self._slots: Slots | None = None
        self._signals: select.epoll | None = None
        self._signalled = Changes()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, launcher: Launcher) -> None:
        """Take the calls of all that `launcher` starts, until cancelled."""
        while True:
            await launcher.wait_connected()
            self._listen(launcher.kept.pop(LISTENER))
            await launcher.wait_gone()

    def _listen(self, fd: int) -> None:
        """Take the calls that come by `fd`, and those that are left."""
        self.close()
        self._fd = fd
        self._signals = select.epoll()
        self._signals.register(fd, select.EPOLLPRI | select.EPOLLET)
        asyncio.get_running_loop().add_reader(self._signals, self._hear_signals)
        if self._slots is None:
            self._slots = Slots()
            for slot, call in self._slots.list_left():
                self._begin(slot, call)
        asyncio.get_running_loop().add_reader(fd, self._take)

    def close(self) -> None:
        """Take no more calls."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        if self._signals:
            asyncio.get_running_loop().remove_reader(self._signals)
            self._signals.close()
            self._signals = None

    # -- callers that are interrupted ------------------------------------------------------------

    def _hear_signals(self) -> None:
        assert self._signals
        self._signals.poll(0)
        self._signalled.tell()

    def is_signalled(self, call: HeldCall) -> bool:
        """Tell whether the caller has got a signal since we have its call, or is gone."""
        try:
            return bool(fcntl.ioctl(self._fd, SIGNALLED, bytearray(_ID.pack(call.id))))
        except OSError as error:
            return error.errno == errno.ENOENT

    async def wait_signal(self, call: HeldCall) -> None:
        """Wait until that is so; for ever if this kernel does not tell."""
        await self._signalled.wait_for(lambda: self.is_signalled(call))

    def _take(self) -> None:
        assert self._slots
        try:
            received = self._slots.receive(self._fd)
        except OSError:
            logger.exception("the filter's listener")
            self.close()
            return
        if received:
            self._begin(*received)
        if self._slots.full:
            asyncio.get_running_loop().remove_reader(self._fd)

    def _begin(self, slot: int, call: HeldCall) -> None:
        task = asyncio.get_running_loop().create_task(self._attend(slot, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attend(self, slot: int, call: HeldCall) -> None:
        try:
            verdict = await self._judge(call)
        except Exception:
            logger.exception("system call %d of %d", call.number, call.thread)
            verdict = Verdict(error=errno.EIO)
        self._send(call, verdict)
        if verdict.settled:
            verdict.settled()
        assert self._slots
        was_full = self._slots.full
        self._slots.release(slot)
        if was_full and self._fd >= 0:
            asyncio.get_running_loop().add_reader(self._fd, self._take)

    def _send(self, call: HeldCall, verdict: Verdict) -> None:
        flags = CONTINUE if verdict.goes_on else 0
        try:
            error = verdict.error or self._write(call, verdict)
            if verdict.fd >= 0:
                error = self._put(call, verdict.fd)
            if error or verdict.fd < 0:
                result = 0 if error else verdict.result
                fcntl.ioctl(self._fd, SEND, _RESPONSE.pack(call.id, result, -error, flags))
        except OSError as error:
            if error.errno != errno.ENOENT:  # the caller was killed meanwhile
                logger.warning("answering system call %d: %s", call.number, error)

    def _put(self, call: HeldCall, fd: int) -> int:
        """Answer with a duplicate of `fd`, which is closed; return the error number, or 0."""
        try:
            fcntl.ioctl(self._fd, PUT, _PUT.pack(call.id, SENDS, fd, 0, os.O_CLOEXEC))
        except OSError as error:
            # Gone, or it has no room for one.
            return error.errno or errno.EMFILE
        finally:
            # By a thread: if it has gone nowhere, this is the last close of a device of ours.
            asyncio.get_running_loop().run_in_executor(None, os.close, fd)
        return 0

    def _write(self, call: HeldCall, verdict: Verdict) -> int:
        """Write what the caller is to find; return the error number, 0 if there is none."""
        if verdict.written is None:
            return 0
        # If the caller was killed, its number may be somebody else's by now.
        fcntl.ioctl(self._fd, IS_VALID, _ID.pack(call.id))
        try:
            write_memory(call.thread, *verdict.written)
        except OSError as error:
            return error.errno or errno.EFAULT
        return 0
