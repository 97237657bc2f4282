"""Queues of this node that others use: their ends, which the keeper has, and what is wanted."""

from __future__ import annotations

import asyncio
import errno
import os
from urllib.parse import unquote_to_bytes

from ssi.common import wire
from ssi.common.wire import Message
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.keeper import owner_of
from ssi.node.process.caller import Caller
from ssi.node.queues.homes import Homes
from ssi.node.queues.keeper import (
    FOREVER,
    LOST,
    MAX_TEXT,
    Flag,
    Order,
    Outcome,
    QueueKeeper,
    Wish,
)
from ssi.node.queues.shared import Shared
from ssi.node.state.queues import check_name
from ssi.node.state.state import State
from ssi.node.state.view import View

MAX_NUMBER = 2**60 - 1
MAX_WORD = 2**32 - 1
MAX_SECONDS = 2**62
BILLION = 10**9


class Own:
    """All of this node."""

    def __init__(self, homes: Homes, keeper: QueueKeeper, shared: Shared, ics: Ics) -> None:
        self._homes = homes
        self._keeper = keeper
        self._shared = shared
        self._view = View()
        self._ready = asyncio.Event()
        ics.serve("queue-open", self._answer_open)
        ics.serve("queue-unlink", self._answer_unlink)
        ics.serve("queue-do", self._answer_do)
        ics.serve("queue-done", self._answer_done)
        ics.serve("queue-cancel", self._answer_cancel)
        ics.serve("queue-close", self._answer_close)

    def hear_changes(self, now: State) -> None:
        """Close what the dead have open."""
        self._view = now.view
        self.drop_dead()
        self._ready.set()

    def drop_dead(self) -> None:
        """Close what the dead had open in queues that are made anew here, too."""
        alive = {owner_of(self._view, node) for node in self._view.alive}
        for owner in self._keeper.owners - alive:
            self._keeper.drop(owner)

    async def _read(self, call: Call) -> tuple[int, int]:
        """Return who asks, and by which number."""
        await self._ready.wait()
        number = wire.get_int(call.body, "number", 0, MAX_NUMBER)
        return owner_of(self._view, call.node), number

    # -- names -----------------------------------------------------------------------------------

    async def _answer_open(self, call: Call) -> Message:
        owner, number = await self._read(call)
        name = check_name(wire.get_text(call.body, "name"))
        flags = wire.get_int(call.body, "flags", 0, MAX_WORD)
        caller = Caller.load(wire.get_object(call.body, "caller"))
        if not self._homes.is_here(name):
            return {"again": True}
        if flags & os.O_CREAT and flags & os.O_EXCL and self._homes.exists(name):
            return {"again": False, "error": errno.EEXIST}
        wish = Wish(
            owner, number, Order.OPEN, value=flags & os.O_ACCMODE, caller=caller,
            data=unquote_to_bytes(name),
        )  # fmt: skip
        await self._homes.share()
        outcome = await self._keeper.do(wish)
        if outcome.result == -errno.ENOENT:
            self._keeper.done(owner, number)
            if flags & os.O_CREAT:
                # Somebody is to make it, or has removed it.
                await self._homes.look(name)
                return {"again": True}
        if outcome is LOST:
            return {"again": True}
        if outcome.result < 0:
            return {"again": False, "error": -outcome.result}
        about = wire.put_bytes(outcome.data)
        end = {"end": outcome.result, "about": about, "boot": self._homes.own.boot}
        return {"again": False, "error": 0, **end, **await self._attach(call, outcome)}

    async def _answer_unlink(self, call: Call) -> Message:
        owner, number = await self._read(call)
        name = check_name(wire.get_text(call.body, "name"))
        caller = Caller.load(wire.get_object(call.body, "caller"))
        wish = Wish(owner, number, Order.UNLINK, caller=caller, data=unquote_to_bytes(name))
        outcome = await self._keeper.do(wish)
        await self._homes.look(name)
        await self._shared.settle()
        attached = await self._attach(call, outcome)
        return {"lost": outcome is LOST, "result": outcome.result, **attached}

    # -- what is done to ends --------------------------------------------------------------------

    async def _answer_do(self, call: Call) -> Message:
        if wire.get_text(call.body, "boot") != self._homes.own.boot:
            return {"lost": True}
        owner, number = await self._read(call)
        until = wire.get_ints(call.body, "until", FOREVER, MAX_SECONDS)
        if len(until) != 2 or until[1] not in range(BILLION):
            until = [FOREVER, 0]
        wish = Wish(
            owner, number, Order(wire.get_int(call.body, "order", Order.SEND, Order.AWAIT)),
            end=wire.get_int(call.body, "end", 1, MAX_WORD),
            value=wire.get_int(call.body, "value", 0, MAX_WORD),
            size=wire.get_int(call.body, "size", 0, MAX_TEXT),
            flags=Flag.NONBLOCK if wire.get_flag(call.body, "nonblock") else 0,
            until=(until[0], until[1]), data=wire.get_bytes(call.body, "data")[:MAX_TEXT],
        )  # fmt: skip
        outcome = await self._keeper.do(wish)
        return {
            "lost": outcome is LOST, "result": outcome.result, "value": outcome.value,
            "data": wire.put_bytes(outcome.data), **await self._attach(call, outcome),
        }  # fmt: skip

    async def _attach(self, call: Call, outcome: Outcome) -> Message:
        return {"snapshot": await self._shared.attach(call.node, outcome.snapshot)}

    async def _answer_done(self, call: Call) -> Message:
        self._keeper.done(*await self._read(call))
        return {}

    async def _answer_cancel(self, call: Call) -> Message:
        self._keeper.cancel(*await self._read(call))
        return {}

    async def _answer_close(self, call: Call) -> Message:
        await self._ready.wait()
        if wire.get_text(call.body, "boot") != self._homes.own.boot:
            return {"lost": True}
        owner = owner_of(self._view, call.node)
        outcome = await self._keeper.close(owner, wire.get_int(call.body, "end", 1, MAX_WORD))
        await self._shared.settle()
        return {"lost": outcome is LOST, **await self._attach(call, outcome)}
