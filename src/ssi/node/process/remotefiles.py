"""What is done to descriptors of the remote device: their ghosts do it, on their nodes.

A body that is a shell gives its terminal to groups of this node, which the terminal's own node does
not know. There the terminal stays with the body's group, and who has it is decided here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import signal
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from ssi.common import wire
from ssi.common.errors import NodeLost, SsiError
from ssi.node.process.asking import FOREVER_S, Asking
from ssi.node.process.caller import read_caller, read_memory
from ssi.node.process.device import Control, Device, Kind, Result, Wanted
from ssi.node.process.jobcontrol import has_members, refuses, stop_for
from ssi.node.process.orders import BACKGROUND, Flag, Order
from ssi.node.process.remembered import Remembered
from ssi.node.process.signals import deliver_to_thread
from ssi.node.process.standins import StandIns
from ssi.node.smallfiles import read_text
from ssi.node.tasks import Tasks
from ssi.node.waiting import wait_until

if TYPE_CHECKING:
    from ssi.node.process.bodies import Bodies

TIOCGPGRP, TIOCSPGRP = 0x540F, 0x5410
WATCH, AGAIN = 1 << 62, 1 << 61
"""Set in the number of what follows from a request."""

TERMINAL = "/dev/tty"
STANDARD = ("stdin", "stdout", "stderr")
DESCRIPTOR = re.compile(
    r"/dev/(?P<name>stdin|stdout|stderr)|/(?:dev|proc/(?:self|thread-self|\d+))/fd/(?P<fd>\d{1,6})"
)
MAX_PATH = PAGE = 4096
WITHIN_S = 5.0
OPENS = {2: 0, 85: 0, 257: 1, 437: 1}
"""Which argument is the path: open, creat, openat, openat2 of x86-64."""

_PID = struct.Struct("=i")


def find_opened(thread: int) -> str | None:
    """Return the path that a thread is opening: empty if none, None while it still runs."""
    try:
        number, *words = read_text(f"/proc/{thread}/syscall").split()
        if number == "running":
            return None
        address = int(words[OPENS[int(number)]], 16)
        # Not beyond its page: the next one may not be there.
        size = min(MAX_PATH, PAGE - address % PAGE)
        data = read_memory(thread, address, size)
        if b"\0" not in data:
            data += read_memory(thread, address + size, PAGE)
        return os.fsdecode(data.partition(b"\0")[0])
    except (OSError, ValueError, KeyError, IndexError):
        return ""


class RemoteFiles:
    """The owner of the remote device's handles."""

    def __init__(self, asking: Asking, bodies: Bodies, stand_ins: StandIns, device: Device) -> None:
        self._asking = asking
        self._bodies = bodies
        self._device = device
        self._remembered = Remembered(asking, "ghost-done")
        device.owners[Kind.FILE] = self
        device.on_answered.append(self._remembered.settle)
        self._stand_ins = stand_ins
        self._tasks = Tasks()

    async def _do(self, wanted: Wanted, order: Order, **fields: object) -> Result:
        """Have the ghost do something; raises OSError when none is left."""
        body, fd = self._bodies.of(wanted.handle)
        words = {
            "id": body.id, "number": wanted.number, "order": int(order), "fd": fd, "value": 0,
            "size": 0, "flags": int(Flag.NONBLOCK if wanted.nonblock else 0), "data": "", **fields,
        }  # fmt: skip
        home = body.home
        try:
            answer = await self._asking.ask(home, "ghost-do", words, within_s=FOREVER_S)
        except NodeLost as error:
            raise OSError(errno.EIO, str(error)) from error
        done = {"id": body.id, "number": wanted.number}
        self._remembered.add(wanted.number & ~AGAIN, home, done)
        return Result(wire.get_int(answer, "result", -4095, 2**31), wire.get_bytes(answer, "data"))

    async def _do_in_turn(
        self, wanted: Wanted, number: signal.Signals, order: Order, **fields: object
    ) -> Result:
        """Do something for which a process in the background is stopped.

        Here one that this node's shell has put there; at home one whose whole job is.
        """
        error = self._stop(wanted, number) if self._lacks_terminal(wanted) else 0
        if error:
            return Result(-error)
        result = await self._do(wanted, order, **fields)
        if result.value != BACKGROUND:
            return result
        if error := self._stop(wanted, number):
            return Result(-error)
        again = dataclasses.replace(wanted, number=wanted.number | AGAIN)
        return await self._do(again, order, **{**fields, "flags": 0})

    def _stop(self, wanted: Wanted, number: signal.Signals) -> int:
        return stop_for(wanted.thread, number, self._stand_ins.pids)

    def _lacks_terminal(self, wanted: Wanted) -> bool:
        """Tell whether the body has given its terminal to another group than the caller's."""
        body, _ = self._bodies.of(wanted.handle)
        if not body.foreground:
            return False
        with contextlib.suppress(ProcessLookupError):
            return os.getpgid(wanted.thread) != body.foreground
        return False

    async def read(self, wanted: Wanted, size: int) -> Result:
        """Read."""
        return await self._do_in_turn(wanted, signal.SIGTTIN, Order.READ, value=size)

    async def write(self, wanted: Wanted, data: bytes) -> Result:
        """Write; who writes where nobody reads gets SIGPIPE."""
        flags = int(Flag.SETS | (Flag.NONBLOCK if wanted.nonblock else Flag(0)))
        words = {"flags": flags, "data": wire.put_bytes(data)}
        result = await self._do(wanted, Order.WRITE, **words)
        if result.value == BACKGROUND:
            if error := self._stop(wanted, signal.SIGTTOU):
                return Result(-error)
            again = dataclasses.replace(wanted, number=wanted.number | AGAIN)
            result = await self._do(again, Order.WRITE, **{**words, "flags": 0})
        if result.value == -errno.EPIPE:
            with contextlib.suppress(OSError):
                deliver_to_thread(wanted.thread, signal.SIGPIPE)
        return result

    async def control(
        self, wanted: Wanted, command: int, control: Control, argument: int, data: bytes
    ) -> Result:
        """Do an ioctl."""
        body, _ = self._bodies.of(wanted.handle)
        if control.by_value:
            order, size = Order.IOCTL_VALUE, argument & 0xFFFFFFFF
        else:
            order, size = Order.IOCTL, control.returned
        words = {"value": command, "size": size, "data": wire.put_bytes(data)}
        if not control.sets:
            result = await self._do(wanted, order, **words)
            if command == TIOCGPGRP and result.value >= 0 and body.foreground:
                return dataclasses.replace(result, data=_PID.pack(body.foreground))
            return result
        if command == TIOCSPGRP and has_members(*_PID.unpack(data)):
            error = self._stop(wanted, signal.SIGTTOU) if self._lacks_terminal(wanted) else 0
            if not error:
                self._bodies.lend_terminal(body, *_PID.unpack(data))
            return Result(-error)
        words["flags"] = 0 if refuses(wanted.thread, signal.SIGTTOU) else int(Flag.SETS)
        return await self._do_in_turn(wanted, signal.SIGTTOU, order, **words)

    async def poll(self, wanted: Wanted, events: int, notify: Callable[[], None] | None) -> Result:
        """Return which events there are."""
        result = await self._do(wanted, Order.WATCH, value=events)
        if result.value == 0 and notify:
            self._tasks.spawn(self._await_events(wanted, events, notify))
        return result

    async def _await_events(self, wanted: Wanted, events: int, notify: Callable[[], None]) -> None:
        later = dataclasses.replace(wanted, number=wanted.number | WATCH, nonblock=False)
        with contextlib.suppress(OSError):
            await self._do(later, Order.WATCH, value=events)
        notify()
        await self._remembered.settle(later.number)

    async def cancel(self, wanted: Wanted) -> None:
        """Have a request that is under way end soon."""
        with contextlib.suppress(OSError, SsiError):
            body, _ = self._bodies.of(wanted.handle)
            for number in (wanted.number, wanted.number | AGAIN):
                words = {"id": body.id, "number": number}
                await self._asking.ask(body.home, "ghost-cancel", words)

    async def reopen(self, number: int, thread: int) -> int | None:
        """Return the handle for a thread that opens the device by name.

        It is either its terminal, or one of its descriptors by such a name as /dev/stdout.
        """
        # It has just asked, and may not sleep yet: until then nobody can look.
        await wait_until(lambda: find_opened(thread) is not None, within_s=WITHIN_S)
        path = find_opened(thread) or ""
        if path == TERMINAL:
            return await self._open_terminal(number, thread)
        match = DESCRIPTOR.fullmatch(path)
        if not match:
            return None
        fd = STANDARD.index(match["name"]) if match["name"] else int(match["fd"])
        handle = await self._device.find_handle(read_caller(thread).pid, fd)
        self._bodies.count(handle)
        return handle

    async def _open_terminal(self, number: int, thread: int) -> int | None:
        body = self._bodies.above(read_caller(thread).pid)
        if body is None or not body.tty:
            return None
        base = self._bodies.handle_of(body, 0)
        result = await self._do(Wanted(number, base, thread, nonblock=False), Order.TERMINAL)
        if result.value < 0:
            return None
        handle = self._bodies.handle_of(body, result.value)
        self._bodies.count(handle)
        return handle

    def release(self, handle: int) -> None:
        """Take it that one descriptor of this handle is closed."""
        self._bodies.release(handle)
