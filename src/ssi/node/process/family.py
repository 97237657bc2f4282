"""Parents and children on different nodes, when a parent has moved.

Its children stay where they are, below what it leaves there: its ghost, and on other nodes than its
home a remnant, which is a ghost as well. That one tells how its children fare. Where the parent
is, a placeholder stands for each child that is not there: a child of the parent that stops, goes on
and ends as the real one does. So to wait for a child, to get its SIGCHLD, and to be its parent are
the kernel's affair on both nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
import signal
from collections.abc import Collection, Sequence
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import NodeLost
from ssi.common.nodes import MAX_NODE
from ssi.common.wire import Message
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.process import ends
from ssi.node.process.asking import Asking
from ssi.node.process.caller import MAX_PID, MAX_UID, read_caller
from ssi.node.process.ghost import Ghost, Kind
from ssi.node.process.ghosts import CONTINUED
from ssi.node.process.jobcontrol import parent_of
from ssi.node.process.orders import Order, pack_order
from ssi.node.process.places import Places
from ssi.node.smallfiles import read_text, write_bytes
from ssi.node.tasks import Tasks


@dataclasses.dataclass(frozen=True, slots=True)
class Child:
    """One of a process's, as its placeholder is to be."""

    pid: int
    group: int
    session: int
    uid: int
    gid: int
    node: int
    """Where it is below what its parent has left."""

    def dump(self) -> Message:
        """Return it as a message."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, message: Message) -> Child:
        """Read it, or raise ProtocolError."""
        pid, group, session = (
            wire.get_int(message, key, 1, MAX_PID) for key in ("pid", "group", "session")
        )
        uid, gid = (wire.get_int(message, key, 0, MAX_UID) for key in ("uid", "gid"))
        return cls(pid, group, session, uid, gid, wire.get_int(message, "node", 1, MAX_NODE))


class Family:
    """The ties of processes of this node to some of others."""

    def __init__(self, asking: Asking, places: Places, ics: Ics) -> None:
        self.asking = asking
        self.places = places
        self._ghosts = places.ghosts
        self._ghosts.kin = self
        self._settled: dict[int, asyncio.Event] = {}
        """By parents that are arriving: their placeholders stay as they are."""
        self._tasks = Tasks()
        ics.serve("family-moved", self._answer_moved)
        ics.serve("family-lost", self._answer_lost)
        ics.serve("child-state", self._answer_state)
        ics.serve("child-reaped", self._answer_reaped)
        ics.serve("child-orphan", self._answer_orphan)

    # -- a parent that leaves --------------------------------------------------------------------

    def list_children(self, parent: int) -> list[Child]:
        """Return the children of a process of this node, wherever they are."""
        found = []
        for pid in list_children(parent):
            ghost = self._ghosts.find(pid)
            away = ghost is not None and ghost.kind == Kind.PLACEHOLDER
            node = ghost.below if ghost and away else self.places.node
            with contextlib.suppress(OSError):
                whose = read_caller(pid)
                group, session = os.getpgid(pid), os.getsid(pid)
                found.append(Child(pid, group, session, whose.uids[0], whose.gids[0], node))
        # A group's leader first: the others join it.
        return sorted(found, key=lambda child: child.group != child.pid)

    async def tell_moved(self, parent: int, children: Collection[Child], node: int) -> None:
        """Have what it has left on other nodes know where it is about to be."""
        words = {"pid": parent, "node": node}
        for other in sorted({child.node for child in children} - {self.places.node}):
            with contextlib.suppress(NodeLost):
                await self.asking.ask(other, "family-moved", words)

    def follow(self, parent: int, children: Collection[Child]) -> None:
        """It has left something here: tell of those of its children that have ended unseen."""
        if ghost := self._ghosts.find(parent):
            here = [child.pid for child in children if child.node == self.places.node]
            self._tasks.spawn(self._tell_missing(ghost, here))

    async def _tell_missing(self, ghost: Ghost, children: Collection[int]) -> None:
        """Who ignores SIGCHLD has children of which nobody hears that they have ended."""
        await ghost.changes.wait_for(lambda: ghost.output is not None or ghost.over)
        for pid in set(children) - set(list_children(ghost.pid)):
            self.hear_child(ghost, pid, 0)

    def leave(self, parent: int) -> None:
        """It has left: its placeholders here are not needed any more."""
        remnant = self._ghosts.find(parent)
        for ghost in self._ghosts.list_placeholders(parent):
            if remnant:
                remnant.dropped.add(ghost.pid)
                self._ghosts.save(remnant)
            self._ghosts.forget(ghost)
            ghost.over = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(ghost.pid, signal.SIGKILL)

    # -- a parent that comes ---------------------------------------------------------------------

    async def expect(self, parent: int, children: Sequence[Child], folder: Path) -> list[Child]:
        """Have placeholders born with it, as a file for CRIU says; return for whom.

        Raises OSError if the PID of one is that of another process here.
        """
        away = []
        for child in children:
            # One that came here before it may be below a stand-in of it already.
            if child.node == self.places.node or parent_of(child.pid) == parent:
                continue
            await self.places.stand_ins.make_room(child.pid)
            if Path(f"/proc/{child.pid}").exists():
                raise FileExistsError(
                    errno.EEXIST,
                    f"its child {child.pid} is on node{self.places.node} as an orphan: "
                    "move that one away first",
                )
            away.append(child)
        self._settled[parent] = asyncio.Event()
        for child in away:
            self._ghosts.place(child.pid, child.node, parent)
        lines = (
            f"{child.pid} {child.group} {child.session} {child.uid} {child.gid} {child.node}\n"
            for child in away
        )
        write_bytes(folder / "relatives", "".join(lines).encode())
        return away

    def settle(self, parent: int, *, goes_on: bool) -> None:
        """It goes on here, or not."""
        if settled := self._settled.pop(parent, None):
            settled.set()
        if not goes_on:
            self.leave(parent)

    # -- what it has left ------------------------------------------------------------------------

    async def _answer_moved(self, call: Call) -> Message:
        pid, node = (
            wire.get_int(call.body, "pid", 1, MAX_PID),
            wire.get_int(call.body, "node", 1, MAX_NODE),
        )
        if (ghost := self._ghosts.find(pid)) and not ghost.over:
            ghost.node = node
            self._ghosts.save(ghost)
            for child, status in ghost.children.items():
                self._tell_state(ghost, child, status)
        return {}

    def hear_child(self, ghost: Ghost, child: int, status: int) -> None:
        """A child of a ghost's has ended, stopped or gone on."""
        if child in ghost.dropped:
            if _is_final(status):
                self._tasks.spawn(self._reap(ghost, child))
        elif ghost.children.get(child) != status:
            ghost.children[child] = status
            self._tell_state(ghost, child, status)

    def _tell_state(self, ghost: Ghost, child: int, status: int) -> None:
        words = {"pid": child, "parent": ghost.pid, "status": status}
        ghost.words.put_nowait(("child-state", words))

    async def _reap(self, ghost: Ghost, child: int) -> None:
        ghost.children.pop(child, None)
        ghost.dropped.discard(child)
        await self._ghosts.order(ghost, pack_order(Order.REAP, number=child))

    def hear_alone(self, ghost: Ghost) -> None:
        """A ghost has no children any more."""
        if ghost.kind == Kind.REMNANT and ghost.users.gone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(ghost.pid, signal.SIGKILL)

    async def _answer_reaped(self, call: Call) -> Message:
        """The parent has heard of the end of a child that was here."""
        if ghost := self._ghost_of(call):
            await self._reap(ghost, wire.get_int(call.body, "pid", 1, MAX_PID))
        return {}

    async def _answer_orphan(self, call: Call) -> Message:
        """The parent has ended on the asking node, if it is still there."""
        ghost = self._ghost_of(call)
        if ghost and ghost.kind == Kind.REMNANT:
            # Nothing of it can be used any more but by others on that node, and they lose it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(ghost.pid, signal.SIGKILL)
        return {}

    def _ghost_of(self, call: Call) -> Ghost | None:
        """Return what a parent has left here that is on the asking node."""
        ghost = self._ghosts.find(wire.get_int(call.body, "parent", 1, MAX_PID))
        return ghost if ghost and ghost.node == call.node else None

    # -- placeholders ----------------------------------------------------------------------------

    async def _answer_state(self, call: Call) -> Message:
        """Have a placeholder be as the child is."""
        parent, pid = (wire.get_int(call.body, key, 1, MAX_PID) for key in ("parent", "pid"))
        status = wire.get_int(call.body, "status", 0, CONTINUED)
        if settled := self._settled.get(parent):
            await settled.wait()
        ghost = self._ghosts.find(pid)
        if ghost and ghost.kind == Kind.PLACEHOLDER and ghost.parent == parent:
            await self._ghosts.set_state(ghost, status)
        elif _is_final(status) and self.places.find(parent) == self.places.node:
            # Its parent has heard of it otherwise, or does not know it.
            self._tasks.spawn(self._tell_reaped(call.node, parent, pid))
        return {}

    async def _tell_reaped(self, node: int, parent: int, pid: int) -> None:
        with contextlib.suppress(NodeLost):
            await self.asking.ask(node, "child-reaped", {"parent": parent, "pid": pid})

    def hear_orphan(self, ghost: Ghost) -> None:
        """The parent of a placeholder has ended: so does what it has left with the child."""
        self._tasks.spawn(self._end_orphan(ghost))

    async def _end_orphan(self, ghost: Ghost) -> None:
        with contextlib.suppress(NodeLost):
            words = {"parent": ghost.parent, "pid": ghost.pid}
            await self.asking.ask(ghost.below, "child-orphan", words)
        if self._ghosts.find(ghost.pid) is not ghost:
            return
        if list_children(ghost.pid) or not ghost.users.gone:
            # It is more than that: what a body that has moved on has left here.
            ghost.kind, ghost.parent, ghost.below = Kind.REMNANT, 0, 0
            self._ghosts.save(ghost)
            return
        self._ghosts.forget(ghost)
        with contextlib.suppress(ProcessLookupError):
            os.kill(ghost.pid, signal.SIGKILL)

    def hear_end(self, ghost: Ghost) -> None:
        """A remnant or a placeholder has ended."""
        if ghost.kind == Kind.PLACEHOLDER:
            self._tasks.spawn(self._await_reaped(ghost))
        else:
            self._tasks.spawn(self.tell_lost(ghost.pid, ghost.node))

    async def _await_reaped(self, ghost: Ghost) -> None:
        await ends.wait_reaped(ghost.pid)
        if self._ghosts.find(ghost.pid) is ghost:
            await self._tell_reaped(ghost.below, ghost.parent, ghost.pid)
            self._ghosts.forget(ghost)

    async def tell_lost(self, parent: int, node: int) -> None:
        """Tell the node of a process that nobody tells of its children here any more."""
        with contextlib.suppress(NodeLost):
            await self.asking.ask(node, "family-lost", {"parent": parent})

    async def _answer_lost(self, call: Call) -> Message:
        for ghost in self._ghosts.list_placeholders(wire.get_int(call.body, "parent", 1, MAX_PID)):
            if ghost.below == call.node and not ghost.over:
                await self._ghosts.set_state(ghost, signal.SIGKILL)
        return {}


def list_children(parent: int) -> list[int]:
    """Return the children here of a process of this node, of all its threads."""
    found: list[int] = []
    for path in Path(f"/proc/{parent}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, read_text(path).split())
    return found


def _is_final(status: int) -> bool:
    return not os.WIFSTOPPED(status) and not os.WIFCONTINUED(status)
