"""Devices of this node that others have open, and what they want done."""

from __future__ import annotations

import asyncio
import errno
import os

from ssi.common import wire
from ssi.common.wire import Message
from ssi.node.devfs.keeper import (
    MAX_DATA,
    NONBLOCK,
    DeviceKeeper,
    Done,
    Order,
    Wish,
    pack_opening,
)
from ssi.node.devfs.places import MAX_I64, MAX_U32, check_path
from ssi.node.devfs.streams import MAX_STREAM, Streams
from ssi.node.fifo.pipes import MAX_NUMBER
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.keeper import owner_of
from ssi.node.process.caller import Caller
from ssi.node.state.state import State
from ssi.node.state.view import View

MAX_CONTROL = 4096
FLAGS = os.O_ACCMODE | os.O_NONBLOCK | os.O_SYNC | os.O_DSYNC


class Lent:
    """All of this node."""

    def __init__(self, keeper: DeviceKeeper, ics: Ics, node: int) -> None:
        self._keeper = keeper
        self._node = node
        self._view = View()
        self._ready = asyncio.Event()
        self._owners: set[int] = set()
        """Whom the keeper may have something of."""
        self.streams = Streams(keeper)
        ics.serve("device-open", self._answer_open)
        ics.serve("stream-open", self._answer_open_stream)
        ics.serve("device-do", self._answer_do)
        ics.serve("device-done", self._answer_done)
        ics.serve("device-cancel", self._answer_cancel)
        ics.serve("device-close", self._answer_close)

    @property
    def _boot(self) -> str:
        return self._view.boot_of(self._node)

    def _owner(self, node: int) -> int:
        owner = owner_of(self._view, node)
        self._owners.add(owner)
        return owner

    async def _answer_open(self, call: Call) -> Message:
        caller = Caller.load(call.body)
        path = check_path(wire.get_text(call.body, "path"))
        number = wire.get_int(call.body, "number", 0, MAX_NUMBER)
        flags = wire.get_int(call.body, "flags", 0, MAX_U32) & FLAGS
        await self._ready.wait()
        wish = Wish(
            self._owner(call.node), number, Order.OPEN, value=flags,
            data=pack_opening(caller, path),
        )  # fmt: skip
        return self._tell_opened(wish.owner, number, await self._keeper.do(wish))

    async def _answer_open_stream(self, call: Call) -> Message:
        number = wire.get_int(call.body, "number", 0, MAX_NUMBER)
        stream = wire.get_int(call.body, "stream", 1, MAX_STREAM)
        await self._ready.wait()
        owner = self._owner(call.node)
        return self._tell_opened(owner, number, await self.streams.open(owner, number, stream))

    def _tell_opened(self, owner: int, number: int, done: Done) -> Message:
        if done.result < 0:
            # Nobody will close what is not open.
            self._keeper.done(owner, number, 0)
            return {"error": -done.result}
        return {"error": 0, "end": done.result, "boot": self._boot, "streams": done.streams}

    async def _answer_do(self, call: Call) -> Message:
        await self._ready.wait()
        if wire.get_text(call.body, "boot") != self._boot:
            return {"result": -errno.EIO, "data": ""}
        order = Order(wire.get_int(call.body, "order", Order.READ, Order.SYNC))
        most = MAX_DATA if order is Order.READ else MAX_U32
        most_size = MAX_CONTROL if order is Order.IOCTL else MAX_U32
        wish = Wish(
            self._owner(call.node), wire.get_int(call.body, "number", 0, MAX_NUMBER), order,
            end=wire.get_int(call.body, "end", 1, MAX_U32),
            value=wire.get_int(call.body, "value", 0, most),
            size=wire.get_int(call.body, "size", 0, most_size),
            flags=NONBLOCK if wire.get_flag(call.body, "nonblock") else 0,
            offset=wire.get_int(call.body, "offset", -MAX_I64, MAX_I64),
            data=wire.get_bytes(call.body, "data"),
        )  # fmt: skip
        done = await self._keeper.do(wish)
        # An end that was lost with its keeper.
        result = -errno.EIO if done.result == -errno.EBADF else done.result
        return {"result": result, "data": wire.put_bytes(done.data)}

    async def _answer_done(self, call: Call) -> Message:
        await self._ready.wait()
        number = wire.get_int(call.body, "number", 0, MAX_NUMBER)
        end = wire.get_int(call.body, "end", 0, MAX_U32)
        self._keeper.done(self._owner(call.node), number, end)
        return {}

    async def _answer_cancel(self, call: Call) -> Message:
        await self._ready.wait()
        number = wire.get_int(call.body, "number", 0, MAX_NUMBER)
        end = wire.get_int(call.body, "end", 0, MAX_U32)
        self._keeper.cancel(self._owner(call.node), number, end)
        return {}

    async def _answer_close(self, call: Call) -> Message:
        await self._ready.wait()
        if wire.get_text(call.body, "boot") == self._boot:
            end = wire.get_int(call.body, "end", 1, MAX_U32)
            await self._keeper.close(self._owner(call.node), end)
        return {}

    def hear_changes(self, now: State) -> None:
        """Close what the dead had open."""
        self._view = now.view
        alive = {owner_of(now.view, node) for node in now.view.alive}
        for owner in (self._owners | self._keeper.owners) - alive:
            self._keeper.drop(owner)
        self._owners &= alive
        self._ready.set()
