"""Descriptors of processes on other nodes: here they are of the remote device.

Each is readable once its process has ended, and a signal sent by it goes to the process. The handle
says all there is to know, so nothing has to be kept: the kernel keeps the handle.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import signal
from collections.abc import Callable

from ssi.common import wire
from ssi.common.errors import NodeLost
from ssi.common.wire import Message
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.process.asking import FOREVER_S, Asking
from ssi.node.process.caller import MAX_PID, read_caller, read_memory
from ssi.node.process.device import KIND_SHIFT, PATH, Control, Device, Kind, Result, Wanted
from ssi.node.process.foreign import Foreign, is_forged
from ssi.node.process.listener import GO_ON, HeldCall, Verdict
from ssi.node.process.places import Places
from ssi.node.process.signals import INFO_SIZE
from ssi.node.processes import MAX_BEGUN, start_of
from ssi.node.smallfiles import read_text
from ssi.node.waiting import wait_readable

# x86-64
OPEN, SEND_SIGNAL = 434, 424

NONBLOCK = os.O_NONBLOCK
"""The only flag of pidfd_open: one of a thread alone (PIDFD_THREAD) cannot be had."""

PID_BITS = 22


class Pidfds:
    """The owner of their handles: PID and beginning name one process for ever."""

    def __init__(
        self, foreign: Foreign, asking: Asking, places: Places, device: Device, ics: Ics
    ) -> None:
        self._foreign = foreign
        self._asking = asking
        self._places = places
        self._device = device
        self._watched: dict[int, asyncio.Task[None]] = {}
        """What waits for the end of a process that somebody polls, by the handle."""
        self._polled: dict[int, list[Callable[[], None]]] = {}
        self._ended: set[int] = set()
        """Handles of processes that have ended."""
        foreign.judges[OPEN] = self._open
        foreign.judges[SEND_SIGNAL] = self._send_signal
        device.owners[Kind.PROCESS] = self
        ics.serve("begun", self._answer_begun)
        ics.serve("wait-exit", self._answer_wait_exit)

    # -- the calls -------------------------------------------------------------------------------

    async def _open(self, call: HeldCall) -> Verdict:
        pid, flags = call.int_at(0), call.int_at(1)
        if pid < 0 or flags & ~NONBLOCK or self._foreign.is_here(call, pid):
            return GO_ON
        answer = await self._foreign.ask_where(pid, "begun", {"pid": pid})
        if refused := wire.get_int(answer, "error", 0, 4095):
            return Verdict(error=refused)
        begun = wire.get_int(answer, "result", 0, MAX_BEGUN)
        handle = Kind.PROCESS << KIND_SHIFT | begun << PID_BITS | pid
        return Verdict(fd=await self._device.open(handle, os.O_RDWR | flags))

    async def _send_signal(self, call: HeldCall) -> Verdict:
        fd, number, address = call.int_at(0), call.int_at(1), call.arguments[2]
        pid, begun = await self._find(call.thread, fd, number)
        if not pid:
            return GO_ON
        if call.int_at(3):
            return Verdict(error=errno.EINVAL)
        info = read_memory(call.thread, address, INFO_SIZE) if address else b""
        if info and int.from_bytes(info[:4], "little", signed=True) != number:
            return Verdict(error=errno.EINVAL)
        if info and is_forged(info):
            return Verdict(error=errno.EPERM)
        return await self._foreign.send(call, pid, 0, number, info, begun)

    async def _find(self, thread: int, fd: int, number: int) -> tuple[int, int]:
        """Return process and beginning that a descriptor is of; zeroes if the kernel can send.

        A ghost hears all signals but SIGSTOP.
        """
        if _is_device(thread, fd):
            handle = await self._device.find_handle(read_caller(thread).pid, fd)
            return _unpack(handle) if Kind.of(handle) == Kind.PROCESS else (0, 0)
        if number == signal.SIGSTOP and self._places.is_ghost(pid := _pid_of(thread, fd)):
            return pid, 0
        return 0, 0

    # -- what is done to a descriptor --------------------------------------------------------------

    async def read(self, wanted: Wanted, size: int) -> Result:
        """Nothing is there to be read."""
        del wanted, size
        return Result(-errno.EINVAL)

    async def write(self, wanted: Wanted, data: bytes) -> Result:
        """Nor can anything be written."""
        del wanted, data
        return Result(-errno.EINVAL)

    async def control(
        self, wanted: Wanted, command: int, control: Control, argument: int, data: bytes
    ) -> Result:
        """It is no terminal."""
        del wanted, command, control, argument, data
        return Result(-errno.ENOTTY)

    async def poll(self, wanted: Wanted, events: int, notify: Callable[[], None] | None) -> Result:
        """Return whether the process has ended."""
        handle = wanted.handle
        if handle in self._ended:
            return Result(events & (select.POLLIN | select.POLLRDNORM))
        if handle not in self._watched:
            self._watched[handle] = asyncio.create_task(self._watch(handle))
        if notify:
            self._polled.setdefault(handle, []).append(notify)
        return Result(0)

    async def cancel(self, wanted: Wanted) -> None:
        """Nothing takes long."""

    def release(self, handle: int) -> None:
        """Wait for its end no longer: who else has one of the same process asks again."""
        self._ended.discard(handle)
        for notify in self._polled.pop(handle, []):
            notify()
        if task := self._watched.pop(handle, None):
            task.cancel()

    async def _watch(self, handle: int) -> None:
        """Wait until the process has ended, and tell those who poll."""
        pid, begun = _unpack(handle)
        node: int | None = self._places.find(pid)
        while node:
            try:
                words = {"pid": pid, "begun": begun}
                await self._asking.ask(node, "wait-exit", words, within_s=FOREVER_S)
                break
            except NodeLost:
                # It may have come from there and be on another node.
                node, begun = await self._foreign.find(pid), 0
        self._ended.add(handle)
        self._watched.pop(handle, None)
        for notify in self._polled.pop(handle, []):
            notify()

    # -- what others ask -------------------------------------------------------------------------

    async def _answer_begun(self, call: Call) -> Message:
        """Tell when a process began, by this node's clock; a ghost is as good as its body."""
        pid = wire.get_int(call.body, "pid", 1, MAX_PID)
        try:
            if not self._stands_for_itself(pid):
                return {"result": 0, "error": errno.ESRCH}
            if read_caller(pid).pid != pid:
                return {"result": 0, "error": errno.EINVAL}
            return {"result": start_of(pid), "error": 0}
        except OSError:
            return {"result": 0, "error": errno.ESRCH}

    async def _answer_wait_exit(self, call: Call) -> Message:
        pid = wire.get_int(call.body, "pid", 1, MAX_PID)
        begun = wire.get_int(call.body, "begun", 0, MAX_BEGUN)
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            fd = os.pidfd_open(pid)
            try:
                if self._stands_for_itself(pid) and begun in {0, start_of(pid)}:
                    await wait_readable(fd)
            finally:
                os.close(fd)
        return {}

    def _stands_for_itself(self, pid: int) -> bool:
        return self._places.is_ghost(pid) or not self._places.is_placeholder(pid)


def _unpack(handle: int) -> tuple[int, int]:
    """Return PID and beginning."""
    return handle & ((1 << PID_BITS) - 1), handle >> PID_BITS & MAX_BEGUN


def _is_device(thread: int, fd: int) -> bool:
    try:
        return os.readlink(f"/proc/{thread}/fd/{fd}") == PATH
    except OSError:
        return False


def _pid_of(thread: int, fd: int) -> int:
    """Return of which process a descriptor of `thread` is; 0 if of none that is there."""
    try:
        text = read_text(f"/proc/{thread}/fdinfo/{fd}")
    except OSError:
        return 0
    fields = dict(line.partition(":")[::2] for line in text.splitlines())
    return max(0, int(fields.get("Pid", "0")))
