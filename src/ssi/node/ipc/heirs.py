"""Objects of a node that has died: the lowest node that lives makes them anew, as they were seen.

Whoever used one last has it as it was then. What only the dead node used is gone with it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from ssi.common import wire
from ssi.common.errors import ProtocolError, SsiError
from ssi.common.wire import Message
from ssi.node.ics.answering import Call as Question
from ssi.node.ics.ics import Ics
from ssi.node.ipc.keeper import Kind
from ssi.node.ipc.objects import Objects
from ssi.node.ipc.places import Places, owner_of
from ssi.node.ipc.segments import Segments
from ssi.node.ipc.snapshots import Snapshot, Snapshots
from ssi.node.process.asking import Asking
from ssi.node.process.caller import MAX_PID
from ssi.node.state.ipc import MAX_ID, Home, key_name, object_name
from ssi.node.tasks import Tasks

logger = logging.getLogger(__name__)


class Heirs:
    """This node as one of them."""

    def __init__(
        self, places: Places, objects: Objects, segments: Segments, snapshots: Snapshots,
        asking: Asking, ics: Ics,
    ) -> None:  # fmt: skip
        self._places = places
        self._objects = objects
        self._segments = segments
        self._snapshots = snapshots
        self._asking = asking
        self._taking: set[Home] = set()
        self._tasks = Tasks()
        self.is_living: Callable[[int], bool] = lambda _: False
        """Whether a process of this node that uses SEM_UNDO elsewhere has not ended."""
        ics.serve("ipc-list", self._answer_list)
        ics.serve("ipc-fetch", self._answer_fetch)
        ics.serve("ipc-keep", self._answer_keep)
        ics.serve("ipc-ends", self._answer_ends)

    # -- who has them ----------------------------------------------------------------------------

    async def _answer_list(self, question: Question) -> Message:
        boot = wire.get_text(question.body, "boot")
        return {
            "objects": [
                {"kind": int(one.kind), "id": one.id, "version": one.version}
                for one in self._snapshots.list_of(boot)
            ]
        }

    async def _answer_fetch(self, question: Question) -> Message:
        boot = wire.get_text(question.body, "boot")
        kind = wire.get_int(question.body, "kind", 0, 1)
        identifier = wire.get_int(question.body, "id", 0, MAX_ID)
        for one in self._snapshots.list_of(boot):
            if (one.kind, one.id) == (kind, identifier):
                return {"data": wire.put_bytes(one.data)}
        return {"data": ""}

    async def _answer_keep(self, question: Question) -> Message:
        data = wire.get_bytes(question.body, "data")
        self._snapshots.keep(wire.get_text(question.body, "boot"), data)
        return {}

    async def _answer_ends(self, question: Question) -> Message:
        pids = wire.get_ints(question.body, "pids", 1, MAX_PID)
        return {"ended": [pid for pid in pids if not self.is_living(pid)]}

    # -- who takes them --------------------------------------------------------------------------

    def hear_changes(self) -> None:
        """Take what nobody has, if that is this node's affair.

        Who begins says so: a lower node may come up meanwhile.
        """
        for dead in self._places.list_dead():
            if self._places.is_taker(dead):
                if dead not in self._taking:
                    self._taking.add(dead)
                    self._tasks.spawn(self._take(dead))
            elif self._places.is_lowest():
                self._places.begin(dead)

    async def _take(self, dead: Home) -> None:
        try:
            found = await self._gather(dead)
            made = [one for one in found if await self._make(one)]
            keys = [key_name(one.kind, one.key) for one in made if one.key]
            objects = [object_name(one.kind, one.id) for one in made]
            memory = await self._segments.take(dead)
            keys += [key_name(Kind.MEMORY, one.key) for one in memory if one.key]
            objects += [object_name(Kind.MEMORY, one.id) for one in memory]
            logger.info("node%d: %d of its IPC objects are here now", dead.node, len(objects))
            self._places.take(dead, keys, objects)
        finally:
            self._taking.discard(dead)

    async def _gather(self, dead: Home) -> list[Snapshot]:
        """Return the latest that any node has of each object."""
        latest: dict[tuple[int, int], tuple[int, int]] = {}
        for node in [*self._places.others, self._places.own.node]:
            with contextlib.suppress(SsiError):
                answer = await self._asking.ask(node, "ipc-list", {"boot": dead.boot})
                for one in wire.get_objects(answer, "objects"):
                    name = wire.get_int(one, "kind", 0, 1), wire.get_int(one, "id", 0, MAX_ID)
                    version = wire.get_int(one, "version", 0, 2**64 - 1)
                    latest[name] = max(latest.get(name, (0, 0)), (version, node))
        found = []
        for (kind, identifier), (_, node) in sorted(latest.items()):
            words = {"boot": dead.boot, "kind": kind, "id": identifier}
            with contextlib.suppress(SsiError):
                answer = await self._asking.ask(node, "ipc-fetch", words)
                found.append(Snapshot.load(wire.get_bytes(answer, "data")))
        return found

    async def _make(self, one: Snapshot) -> bool:
        """Make it, have done what the dead have to undo, and have it kept by the others."""
        if one.is_void:
            logger.warning("IPC object %d was too large to be kept", one.id)
            return False
        if not await self._objects.make_anew(one.data):
            logger.error("IPC object %d cannot be made anew", one.id)
            return False
        with contextlib.suppress(ProtocolError):
            for owner, pid in one.list_undos():
                self._objects.settle(owner, pid, ended=await self._has_ended(owner, pid))
        self._objects.note_shared(one.kind, one.id)
        words = {"boot": self._places.own.boot, "data": wire.put_bytes(one.data)}
        for node in self._places.others:
            with contextlib.suppress(SsiError):
                await self._asking.ask(node, "ipc-keep", words)
        return True

    async def _has_ended(self, owner: int, pid: int) -> bool:
        for node in [*self._places.others, self._places.own.node]:
            if owner_of(self._places.home_of(node)) == owner:
                with contextlib.suppress(SsiError):
                    answer = await self._asking.ask(node, "ipc-ends", {"pids": [pid]})
                    return pid in wire.get_ints(answer, "ended", 1, MAX_PID)
        return True
