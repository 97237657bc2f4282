"""Ends of this node's processes whose pipes are on others: what is done to them is done there."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path

from ssi.common import wire
from ssi.common.changes import Changes
from ssi.common.errors import NodeLost, SsiError
from ssi.common.wire import Message
from ssi.node.fifo.homes import Homes
from ssi.node.fifo.keeper import Order
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.process.asking import FOREVER_S, Asking
from ssi.node.process.device import HERE, KIND_SHIFT, Control, Kind, Result, Wanted
from ssi.node.process.farends import PIECES, Kept, Pieces, Watches
from ssi.node.process.remembered import Remembered
from ssi.node.state.fifos import check_name
from ssi.node.state.state import State
from ssi.node.tasks import Tasks

FOLDER = Path("/run/ssi/fifos")
MAX_END = 2**32 - 1
LATE_S = 5.0
"""A pipe whose node is dead, and which nobody has claimed by then, is the lowest node's affair."""


@dataclasses.dataclass(slots=True, eq=False)
class End:
    """One of them."""

    serial: int
    number: int
    """Of the request that opened it."""
    name: str
    flags: int
    home: int
    boot: str
    end: int
    """What it is called there."""
    closing: bool = False

    @property
    def place(self) -> tuple[int, str, int]:
        """Where it is; another after the death of its home."""
        return self.home, self.boot, self.end


class Ends:
    """All of this node."""

    def __init__(self, homes: Homes, asking: Asking, ics: Ics, folder: Path = FOLDER) -> None:
        self._homes = homes
        self._asking = asking
        self._kept = Kept(folder, End)
        self._opening: dict[int, int] = {}
        """Requests that open one: the node that has been asked, 0 if none."""
        self._given_up: set[int] = set()
        self._pieces = Pieces()
        self._remembered = Remembered(asking, "fifo-done")
        self._watches = Watches(self._watch, self._remembered.settle)
        self._changes = Changes()
        self._tasks = Tasks()
        ics.serve("fifo-ends", self._answer_ends)
        ics.serve("fifo-attached", self._answer_attached)

    # -- opening and closing ---------------------------------------------------------------------

    async def open(self, number: int, name: str, flags: int) -> int:
        """Return a handle, or HERE if the kernel's own pipe is to be opened; raises OSError."""
        if end := self._kept.find_opened(number):
            return Kind.FIFO << KIND_SHIFT | end.serial
        self._opening[number] = 0
        try:
            while number not in self._given_up:
                handle = await self._try_open(number, name, flags)
                if handle is not None:
                    return handle
                self._opening[number] = 0
                await self._homes.wait_change()
        finally:
            del self._opening[number]
            self._given_up.discard(number)
        raise OSError(errno.EINTR, os.strerror(errno.EINTR))

    async def _try_open(self, number: int, name: str, flags: int) -> int | None:
        """Return the handle, or HERE; None if it is to be tried again."""
        home = await self._homes.claim(name)
        if self._homes.is_here(name):
            if home.gathers:
                return None
            self._homes.enter(name, number)
            return HERE
        if home.node == self._homes.node:
            return None
        self._opening[number] = home.node
        words = {"name": name, "number": number, "flags": flags}
        try:
            answer = await self._asking.ask(home.node, "fifo-open", words, within_s=FOREVER_S)
        except NodeLost:
            return None
        if wire.get_flag(answer, "again"):
            return None
        if error := wire.get_int(answer, "error", 0, 4095):
            raise OSError(errno.ENOENT if error == errno.ESTALE else error, os.strerror(error))
        serial = self._kept.next_serial()
        named = wire.get_int(answer, "end", 1, MAX_END)
        end = End(serial, number, name, flags, home.node, wire.get_text(answer, "boot"), named)
        self._kept.save(end)
        self._remembered.add(number, home.node, {"number": number})
        return Kind.FIFO << KIND_SHIFT | serial

    async def close(self, handle: int) -> None:
        """The last descriptor is closed: it returns when the end is."""
        end = self._kept.find(handle)
        if end is None:
            return
        end.closing = True
        with contextlib.suppress(NodeLost):
            await self._asking.ask(end.home, "fifo-close", {"end": end.end, "boot": end.boot})
        self._kept.forget(end)

    # -- what is done to them --------------------------------------------------------------------

    async def _do(self, wanted: Wanted, order: Order, **fields: object) -> Result:
        """Have the home do something; if it dies, the next one."""
        end = self._kept.find(wanted.handle)
        if end is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        words = {
            "number": wanted.number, "order": int(order), "value": 0, "size": 0, "data": "",
            "nonblock": wanted.nonblock, **fields,
        }  # fmt: skip
        while True:
            place = end.place
            there = {**words, "end": end.end, "boot": end.boot}
            try:
                answer = await self._asking.ask(end.home, "fifo-do", there, within_s=FOREVER_S)
            except NodeLost:
                answer = {"lost": True}
            if not wire.get_flag(answer, "lost"):
                whole = wanted.number & ~PIECES
                self._remembered.add(whole, end.home, {"number": wanted.number})
                result = wire.get_int(answer, "result", -4095, 2**31)
                return Result(result, wire.get_bytes(answer, "data"))
            await self._wait_elsewhere(end, place)

    async def _wait_elsewhere(self, end: End, place: tuple[int, str, int]) -> None:
        await self._changes.wait_for(lambda: end.place != place or end.closing)
        if end.closing:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    async def read(self, wanted: Wanted, size: int) -> Result:
        """Read."""
        return await self._do(wanted, Order.READ, value=size)

    async def write(self, wanted: Wanted, data: bytes) -> Result:
        """Write; the kernel sends SIGPIPE. If the home dies only the last piece is in doubt."""

        async def do(piece: Wanted, given: str) -> Result:
            return await self._do(piece, Order.WRITE, data=given)

        return await self._pieces.write(wanted, data, do)

    async def control(
        self, wanted: Wanted, command: int, control: Control, argument: int, data: bytes
    ) -> Result:
        """Do an ioctl."""
        del argument
        if control.by_value or control.sets:
            return Result(-errno.ENOTTY)
        words = {"value": command, "size": control.returned, "data": wire.put_bytes(data)}
        return await self._do(wanted, Order.IOCTL, **words)

    async def _watch(self, wanted: Wanted, events: int) -> Result:
        return await self._do(wanted, Order.WATCH, value=events)

    async def poll(self, wanted: Wanted, events: int, notify: Callable[[], None] | None) -> Result:
        """Return which events there are."""
        return await self._watches.poll(wanted, events, notify)

    async def cancel(self, wanted: Wanted) -> None:
        """Have a request that is under way end soon."""
        node = self._opening.get(wanted.number)
        if node is None and (end := self._kept.find(wanted.handle)):
            node = end.home
        number = self._pieces.give_up(wanted.number)
        if wanted.number in self._opening:
            self._given_up.add(wanted.number)
        if node:
            with contextlib.suppress(SsiError):
                await self._asking.ask(node, "fifo-cancel", {"number": number})

    async def settle(self, number: int) -> None:
        """Take it that the kernel has the answer to a request."""
        await self._remembered.settle(number)

    def release(self, handle: int) -> None:
        """Take it that it is closed: `close` has done it."""

    def end_pipe(self, number: int, name: str, opens: int) -> None:
        """The kernel's own pipe is gone which so many opens were for."""
        self._homes.leave(name, number, opens)

    # -- after the death of a home ---------------------------------------------------------------

    def hear_changes(self, before: State, now: State) -> None:
        """Claim what a dead node had: at once what is used here, later the rest, if we are to."""
        orphans = self._homes.list_orphans()
        for name in orphans & {end.name for end in self._kept}:
            self._tasks.spawn(self._claim(name))
        if orphans and now.view.alive != before.view.alive:
            self._tasks.spawn(self._claim_rest())

    async def _claim(self, name: str) -> None:
        with contextlib.suppress(OSError):
            await self._homes.claim(name)

    async def _claim_rest(self) -> None:
        await asyncio.sleep(LATE_S)
        if self._homes.is_lowest():
            for name in self._homes.list_orphans():
                await self._claim(name)

    async def _answer_ends(self, call: Call) -> Message:
        """A node that takes over from a dead one asks what there is."""
        name = check_name(wire.get_text(call.body, "name"))
        boot = wire.get_text(call.body, "boot")
        ends = [
            {"serial": end.serial, "flags": end.flags}
            for end in self._kept
            if end.name == name and not end.closing and end.boot != boot
        ]
        return {"ends": ends}

    async def _answer_attached(self, call: Call) -> Message:
        """Take it where ends are now; return those that are closed meanwhile."""
        boot, closed = wire.get_text(call.body, "boot"), []
        for one in wire.get_objects(call.body, "ends"):
            named = wire.get_int(one, "end", 1, MAX_END)
            end = self._kept.get(wire.get_int(one, "serial", 1, MAX_END))
            if end is None or end.closing:
                closed.append(named)
                continue
            end.home, end.boot, end.end = call.node, boot, named
            self._kept.save(end)
        self._changes.tell()
        return {"closed": closed}
