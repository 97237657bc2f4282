"""The filter's listener: system calls that the kernel holds until we say what becomes of them.

Which they are is in native/filter.h. The launcher keeps the descriptor, so calls that come while
this daemon is restarted wait for the next one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import fcntl
import logging
import os
import struct
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

# linux/seccomp.h
RECEIVE = 0xC0502100
SEND = 0xC0182101
STILL_THERE = 0x40082102
CONTINUE = 1

_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")
_ID = struct.Struct("=Q")

_INT = 1 << 32


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


GO_ON = Verdict(goes_on=True)

Judge = Callable[[HeldCall], Awaitable[Verdict]]


class Listener:
    """Takes calls and has them judged, each by a task of its own."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._fd = -1
        self._tasks: set[asyncio.Task[None]] = set()

    def listen(self, fd: int) -> None:
        """Take the calls that come by `fd`, which is ours from now on."""
        self.close()
        self._fd = fd
        asyncio.get_running_loop().add_reader(fd, self._take)

    def close(self) -> None:
        """Take no more calls."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _take(self) -> None:
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self._fd, RECEIVE, buffer)
        except OSError as error:
            # ENOENT: the caller was killed before we came.
            if error.errno not in {errno.ENOENT, errno.EINTR}:
                logger.exception("the filter's listener")
                self.close()
            return
        call_id, thread, _, number, _, _, *arguments = _NOTIFICATION.unpack(buffer)
        call = HeldCall(call_id, thread, number, tuple(arguments))
        task = asyncio.get_running_loop().create_task(self._attend(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attend(self, call: HeldCall) -> None:
        try:
            verdict = await self._judge(call)
        except Exception:
            logger.exception("system call %d of %d", call.number, call.thread)
            verdict = Verdict(error=errno.EIO)
        self._send(call, verdict)

    def _send(self, call: HeldCall, verdict: Verdict) -> None:
        flags = CONTINUE if verdict.goes_on else 0
        response = _RESPONSE.pack(call.id, verdict.result, -verdict.error, flags)
        try:
            fcntl.ioctl(self._fd, SEND, response)
        except OSError as error:
            if error.errno != errno.ENOENT:  # the caller was killed meanwhile
                logger.warning("answering system call %d: %s", call.number, error)

    def is_there(self, call: HeldCall) -> bool:
        """Tell whether the caller still waits; what was read of it meanwhile is then its own."""
        try:
            fcntl.ioctl(self._fd, STILL_THERE, _ID.pack(call.id))
        except OSError:
            return False
        return True
