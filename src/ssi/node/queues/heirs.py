"""Queues of a node that has died: the lowest member makes them anew, as they were last heard of."""

from __future__ import annotations

import contextlib
import dataclasses
import logging

from ssi.common import wire
from ssi.common.errors import ProtocolError, SsiError
from ssi.common.wire import Message
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.process.asking import Asking
from ssi.node.queues.homes import Homes
from ssi.node.queues.keeper import MAX_KEPT, QueueKeeper
from ssi.node.queues.own import Own
from ssi.node.queues.shared import Shared
from ssi.node.queues.snapshots import MAX_NUMBER, PIECE, Snapshot, Snapshots
from ssi.node.state.ipc import Home
from ssi.node.tasks import Tasks

logger = logging.getLogger(__name__)

MAX_LISTED = 500
"""So many fit an answer."""


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class _Found:
    """That a node knows a queue."""

    version: int
    node: int
    boot: str
    size: int


class Heirs:
    """This node as one of them."""

    def __init__(
        self, homes: Homes, keeper: QueueKeeper, own: Own, shared: Shared, snapshots: Snapshots,
        asking: Asking, ics: Ics,
    ) -> None:  # fmt: skip
        self._homes = homes
        self._keeper = keeper
        self._own = own
        self._shared = shared
        self._snapshots = snapshots
        self._asking = asking
        self._taking = False
        self._tasks = Tasks()
        ics.serve("queue-list", self._answer_list)
        ics.serve("queue-fetch", self._answer_fetch)

    # -- who knows them --------------------------------------------------------------------------

    async def _answer_list(self, call: Call) -> Message:
        dead = [Home.load(one) for one in wire.get_objects(call.body, "dead")]
        after = wire.get_int(call.body, "after", 0, MAX_NUMBER)
        # From then on nothing that they have said is believed here.
        while any(self._homes.is_alive(one) for one in dead):
            await self._homes.wait_change()
        known = sorted(self._snapshots.list_all(), key=lambda one: one.id)
        return {
            "queues": [
                {"id": one.id, "version": one.version, "boot": one.boot, "size": len(one.data)}
                for one in [one for one in known if one.id > after][:MAX_LISTED]
            ]
        }

    async def _answer_fetch(self, call: Call) -> Message:
        one = self._snapshots.find(wire.get_int(call.body, "id", 0, MAX_NUMBER))
        offset = wire.get_int(call.body, "offset", 0, MAX_KEPT)
        if one is None or one.version != wire.get_int(call.body, "version", 0, MAX_NUMBER):
            return {"data": ""}
        return {"data": wire.put_bytes(one.data[offset : offset + PIECE])}

    # -- who takes them --------------------------------------------------------------------------

    def hear_changes(self) -> None:
        """Take what nobody has, if that is this node's affair.

        Who begins says so: a lower node may come up meanwhile.
        """
        if self._homes.is_lowest():
            self._homes.begin()
        if not self._taking and self._homes.list_taken():
            self._taking = True
            self._tasks.spawn(self._take_all())

    async def _take_all(self) -> None:
        try:
            while dead := self._homes.list_taken():
                await self._take(dead)
        finally:
            self._taking = False

    async def _take(self, dead: list[Home]) -> None:
        await self._homes.share()
        moving = {name for name, home in self._homes.list_moving().items() if home in dead}
        made: set[str] = set()
        # The latest first: a keeper that was killed had its own of a name.
        for number, found in sorted(
            (await self._gather(dead)).items(), key=lambda one: one[1], reverse=True
        ):
            one = await self._fetch(number, found)
            if one is None:
                logger.error("a queue that node%d knew cannot be made anew", found.node)
            elif await self._make(one, named=one.name in moving - made):
                made.add(one.name)
            else:
                await self._shared.forget(number)
        self._own.drop_dead()
        with contextlib.suppress(SsiError):
            await self._shared.tell_all()
        logger.info("%d of the queues of %s are here now", len(made), [one.node for one in dead])
        # Some the daemon before this one may have made.
        await self._homes.take(dead, [name for name in moving if self._homes.exists(name)])

    async def _gather(self, dead: list[Home]) -> dict[int, _Found]:
        """Return who knows the latest of each queue whose node is dead."""
        latest: dict[int, _Found] = {}
        for node in [*self._homes.others, self._homes.own.node]:
            with contextlib.suppress(SsiError):
                for number, found in await self._list(node, dead):
                    latest[number] = max(latest.get(number, found), found)
        return {
            number: found for number, found in latest.items() if self._homes.is_of(found.boot, dead)
        }

    async def _list(self, node: int, dead: list[Home]) -> list[tuple[int, _Found]]:
        """Return what queues a node knows, and what of each; raises SsiError."""
        listed: list[tuple[int, _Found]] = []
        while True:
            after = listed[-1][0] if listed else 0
            words = {"dead": [one.dump() for one in dead], "after": after}
            answer = await self._asking.ask(node, "queue-list", words)
            queues = wire.get_objects(answer, "queues")
            for one in queues:
                found = _Found(
                    wire.get_int(one, "version", 0, MAX_NUMBER), node,
                    wire.get_text(one, "boot"), wire.get_int(one, "size", 0, MAX_KEPT),
                )  # fmt: skip
                listed.append((wire.get_int(one, "id", 0, MAX_NUMBER), found))
            if len(queues) < MAX_LISTED:
                return listed

    async def _fetch(self, number: int, found: _Found) -> Snapshot | None:
        data = b""
        while len(data) < found.size:
            words = {"id": number, "version": found.version, "offset": len(data)}
            with contextlib.suppress(SsiError):
                answer = await self._asking.ask(found.node, "queue-fetch", words)
                if piece := wire.get_bytes(answer, "data"):
                    data += piece
                    continue
            return None
        with contextlib.suppress(ProtocolError):
            return Snapshot.load(found.boot, data)
        return None

    async def _make(self, one: Snapshot, *, named: bool) -> bool:
        if one.is_void:
            logger.warning("queue %s had too much in it to be kept", one.name)
            return False
        error = await self._keeper.restore(one.data, named=named)
        if error:
            logger.info("queue %s is not made anew: error %d", one.name, -error)
        return not error
