"""This node's queues that others have had open: what they are now is known to another node.

Along with each answer it goes to who has asked. What this node's own processes do waits until it
has gone to the witness, the next member.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from ssi.common import wire
from ssi.common.errors import NodeLost, SsiError
from ssi.common.wire import Message
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.process.asking import Asking
from ssi.node.queues.homes import Homes
from ssi.node.queues.keeper import QueueKeeper
from ssi.node.queues.snapshots import MAX_NUMBER, PIECE, Snapshot, Snapshots
from ssi.node.state.ipc import Home
from ssi.node.tasks import Tasks

logger = logging.getLogger(__name__)


class Shared:
    """All of this node."""

    def __init__(
        self, homes: Homes, keeper: QueueKeeper, snapshots: Snapshots, asking: Asking, ics: Ics
    ) -> None:
        self._homes = homes
        self._keeper = keeper
        self._snapshots = snapshots
        self._asking = asking
        self._witness: Home | None = None
        self._alive: set[int] = set()
        self._telling: dict[tuple[int, bool], asyncio.Task[None]] = {}
        """What goes to the witness, by queue, or by its inode."""
        self._next: dict[tuple[int, bool], asyncio.Task[None]] = {}
        """What follows it: for whoever has come meanwhile."""
        self._forgetting: dict[int, asyncio.Task[None]] = {}
        self._tasks = Tasks()
        keeper.on_gone = self._hear_gone
        ics.serve("queue-keep", self._answer_keep)
        ics.serve("queue-gone", self._answer_gone)

    # -- who tells -------------------------------------------------------------------------------

    async def tell_change(self, inode: int) -> None:
        """Return when another node knows what a process of this one has done to a queue."""
        await self._tell(inode, is_inode=True)

    async def tell_all(self) -> None:
        """Return when another node knows what all are now."""
        for number in sorted(self._keeper.shared):
            await self._tell(number, is_inode=False)

    def hear_changes(self) -> None:
        """Another witness is told of all, and whoever is left of what only the dead knew."""
        alive = set(self._homes.others)
        if self._homes.witness != self._witness or self._alive - alive:
            self._witness = self._homes.witness
            self._tasks.spawn(self.tell_all())
        self._alive = alive

    async def _tell(self, number: int, *, is_inode: bool) -> None:
        """Have looked at a queue after now, and what it is told: once for all who want that."""
        key = (number, is_inode)
        if key not in self._next:
            self._next[key] = asyncio.get_running_loop().create_task(self._follow(key))
        await asyncio.shield(self._next[key])

    async def _follow(self, key: tuple[int, bool]) -> None:
        if before := self._telling.get(key):
            with contextlib.suppress(Exception):
                await before
        self._telling[key] = self._next.pop(key)
        try:
            data = await self._keeper.look(key[0], is_inode=key[1])
            if data:
                await self._tell_witness(data)
            await self.settle()
        finally:
            del self._telling[key]

    async def _tell_witness(self, data: bytes) -> None:
        while witness := self._homes.witness:
            with contextlib.suppress(NodeLost):
                await self._send(witness.node, data)
                return
            await self._homes.wait_change()

    async def _send(self, node: int, data: bytes) -> None:
        """Have it kept there; raises NodeLost."""
        for _ in range(3):
            taken = True
            for piece in Snapshot.load(self._homes.own.boot, data).cut():
                answer = await self._asking.ask(node, "queue-keep", piece)
                taken = taken and wire.get_flag(answer, "taken")
            if taken:
                return
        logger.error("node%d does not take what a queue is", node)

    async def attach(self, node: int, data: bytes) -> str:
        """Return what goes with an answer to `node`: what a queue is now, if that is not there."""
        if not data:
            return ""
        if node == self._homes.own.node:
            # It would not outlive us here.
            await self._tell_witness(data)
        elif len(data) <= PIECE:
            return wire.put_bytes(data)
        else:
            with contextlib.suppress(NodeLost):
                await self._send(node, data)
        return ""

    # -- what is gone ----------------------------------------------------------------------------

    def _hear_gone(self, number: int) -> None:
        task = self._tasks.spawn(self.forget(number))
        self._forgetting[number] = task
        task.add_done_callback(lambda _: self._forgetting.pop(number, None))

    async def forget(self, number: int) -> None:
        """Have all others forget it: it must not come back with our death."""

        async def tell(node: int) -> None:
            with contextlib.suppress(SsiError):
                await self._asking.ask(node, "queue-gone", {"id": number})

        self._snapshots.forget(number)
        await asyncio.gather(*(tell(node) for node in self._homes.others))

    async def settle(self) -> None:
        """Return when all others have forgotten what is gone."""
        while self._forgetting:
            await asyncio.wait(set(self._forgetting.values()))

    # -- who is told -----------------------------------------------------------------------------

    async def _answer_keep(self, call: Call) -> Message:
        if not self._homes.is_living(wire.get_text(call.body, "boot")):
            return {"taken": True}  # too late
        return {"taken": self._snapshots.take_piece(call.body)}

    async def _answer_gone(self, call: Call) -> Message:
        self._snapshots.forget(wire.get_int(call.body, "id", 0, MAX_NUMBER))
        return {}
