"""Pipes of this node that others use: their ends, which the keeper has, and what they want done."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os

from ssi.common import wire
from ssi.common.errors import NodeLost
from ssi.common.wire import Message
from ssi.node.fifo.ends import MAX_END
from ssi.node.fifo.homes import Homes
from ssi.node.fifo.keeper import MAX_DATA, EndKeeper, Flag, Order, Wish
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.keeper import owner_of
from ssi.node.process.asking import Asking
from ssi.node.state.fifos import check_name
from ssi.node.state.state import State
from ssi.node.state.view import View
from ssi.node.tasks import Tasks

MAX_NUMBER = 2**60 - 1
MAX_WORD = 2**32 - 1
GATHERED = 1 << 62
"""Set in the id of an order for an end that was open before."""

MAX_CONTROL = 256
FLAGS = os.O_ACCMODE | os.O_NONBLOCK


class Pipes:
    """All of this node."""

    def __init__(self, homes: Homes, keeper: EndKeeper, asking: Asking, ics: Ics) -> None:
        self._homes = homes
        self._keeper = keeper
        self._asking = asking
        self._view = View()
        self._ready = asyncio.Event()
        self._opening: collections.Counter[str] = collections.Counter()
        self._gathering: set[str] = set()
        self._owners: set[int] = set()
        """Whom the keeper may have something of."""
        self._tasks = Tasks()
        homes.is_used = self._is_used
        keeper.on_close = homes.look
        ics.serve("fifo-open", self._answer_open)
        ics.serve("fifo-do", self._answer_do)
        ics.serve("fifo-done", self._answer_done)
        ics.serve("fifo-cancel", self._answer_cancel)
        ics.serve("fifo-close", self._answer_close)

    def _is_used(self, name: str) -> bool:
        if not self._keeper.is_told or self._opening[name]:
            return True
        return any(held.name == name for held in self._keeper.held.values())

    def _owner(self, node: int) -> int:
        owner = owner_of(self._view, node)
        self._owners.add(owner)
        return owner

    # -- what others want ------------------------------------------------------------------------

    async def _answer_open(self, call: Call) -> Message:
        name = check_name(wire.get_text(call.body, "name"))
        number = wire.get_int(call.body, "number", 0, MAX_NUMBER)
        flags = wire.get_int(call.body, "flags", 0, MAX_WORD) & FLAGS
        await self._ready.wait()
        home = self._homes.find(name)
        if not self._homes.is_here(name) or (home and home.gathers) or self._homes.release(name):
            return {"again": True}
        self._opening[name] += 1
        try:
            end = await self._keeper.open(self._owner(call.node), number, name, flags)
        finally:
            self._opening[name] -= 1
            self._homes.look(name)
        return {"again": False, "error": max(0, -end), "end": end, "boot": self._homes.boot}

    async def _answer_do(self, call: Call) -> Message:
        if wire.get_text(call.body, "boot") != self._homes.boot:
            return {"lost": True}
        await self._ready.wait()
        order = Order(wire.get_int(call.body, "order", Order.READ, Order.WATCH))
        most = MAX_DATA if order is Order.READ else MAX_WORD
        wish = Wish(
            self._owner(call.node), wire.get_int(call.body, "number", 0, MAX_NUMBER), order,
            end=wire.get_int(call.body, "end", 1, MAX_END),
            value=wire.get_int(call.body, "value", 0, most),
            size=wire.get_int(call.body, "size", 0, MAX_CONTROL),
            flags=Flag.NONBLOCK if wire.get_flag(call.body, "nonblock") else 0,
            data=wire.get_bytes(call.body, "data"),
        )  # fmt: skip
        result, data = await self._keeper.do(wish)
        return {"lost": False, "result": result, "data": wire.put_bytes(data)}

    async def _answer_done(self, call: Call) -> Message:
        await self._ready.wait()
        number = wire.get_int(call.body, "number", 0, MAX_NUMBER)
        self._keeper.done(self._owner(call.node), number)
        return {}

    async def _answer_cancel(self, call: Call) -> Message:
        await self._ready.wait()
        number = wire.get_int(call.body, "number", 0, MAX_NUMBER)
        self._keeper.cancel(self._owner(call.node), number)
        return {}

    async def _answer_close(self, call: Call) -> Message:
        if wire.get_text(call.body, "boot") == self._homes.boot:
            await self._keeper.close(wire.get_int(call.body, "end", 1, MAX_END))
        return {}

    # -- deaths ----------------------------------------------------------------------------------

    def hear_changes(self, now: State) -> None:
        """Close the ends of the dead, and take over what is ours now."""
        self._view = now.view
        alive = {owner_of(now.view, node) for node in now.view.alive}
        known = self._owners | {held.owner for held in self._keeper.held.values()}
        for owner in known - alive:
            self._keeper.drop(owner)
        self._owners &= alive
        for name in self._homes.list_gathering() - self._gathering:
            self._gathering.add(name)
            self._tasks.spawn(self._gather(name))
        self._ready.set()

    async def _gather(self, name: str) -> None:
        """Open here what nodes have open, before anybody goes on with it."""
        try:
            opened = {node: await self._open_for(node, name) for node in sorted(self._view.alive)}
            for node, ends in opened.items():
                await self._attach(node, ends)
            self._homes.settle(name)
        finally:
            self._gathering.discard(name)
            self._homes.look(name)

    async def _open_for(self, node: int, name: str) -> list[Message]:
        owner = self._owner(node)
        ends = []
        with contextlib.suppress(NodeLost):
            words = {"name": name, "boot": self._homes.boot}
            answer = await self._asking.ask(node, "fifo-ends", words)
            for one in wire.get_objects(answer, "ends"):
                serial = wire.get_int(one, "serial", 1, MAX_END)
                flags = wire.get_int(one, "flags", 0, MAX_WORD) & FLAGS
                end = await self._keeper.open(owner, GATHERED | serial, name, flags, stands=True)
                if end > 0:
                    ends.append({"serial": serial, "end": end})
        return ends

    async def _attach(self, node: int, ends: list[Message]) -> None:
        with contextlib.suppress(NodeLost):
            words = {"boot": self._homes.boot, "ends": ends}
            answer = await self._asking.ask(node, "fifo-attached", words)
            for end in wire.get_ints(answer, "closed", 1, MAX_END):
                await self._keeper.close(end)
        for one in ends:
            self._keeper.done(self._owner(node), GATHERED | wire.get_int(one, "serial", 1, MAX_END))
