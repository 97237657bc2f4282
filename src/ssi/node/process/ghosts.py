"""Ghosts: processes of this node whose bodies run on others (native/onnode.c).

A ghost does what its body wants done with descriptors of this node, tells what signals it gets, and
stops, goes on and ends as the body does. It outlives this daemon: the next one knows it by the file
that is written before anything is asked of another node.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import secrets
import signal
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from ssi.common import wire
from ssi.common.errors import ProtocolError, SsiError
from ssi.common.nodes import MAX_NODE
from ssi.common.wire import Message
from ssi.node.cluster import Cluster
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.launcher import Launcher, Program
from ssi.node.local import CallerGone, Output, Request
from ssi.node.process.asking import Asking
from ssi.node.process.caller import MAX_PID, MAX_UID, read_caller
from ssi.node.process.ghost import (
    MAX_NUMBER,
    PROGRAM,
    Ghost,
    Kind,
    has_set_off,
    is_process,
    is_stopped,
    wake,
)
from ssi.node.process.orders import (
    Order,
    Report,
    pack_order,
    parse_report,
    parse_signal,
)
from ssi.node.process.users import MAX_FD
from ssi.node.processes import start_of
from ssi.node.smallfiles import read_text, write_bytes
from ssi.node.state.state import State
from ssi.node.tasks import Tasks
from ssi.node.waiting import wait_until

logger = logging.getLogger(__name__)

FOLDER = Path("/run/ssi/ghosts")
CONTINUED = 0xFFFF
"""The wait status of who goes on."""

BACK_S = 30.0
"""A ghost that has not come back to a new daemon by then is not one any more."""

STOPS_S = 5.0

NODE_SHIFT = 52
EIO = 5
_STOPPED = 0x7F  # in a wait status


class Kin(Protocol):
    """Hears of what concerns parents and children on different nodes."""

    def hear_child(self, ghost: Ghost, child: int, status: int) -> None:
        """A child of a ghost's has ended, stopped or gone on."""

    def hear_alone(self, ghost: Ghost) -> None:
        """The last child of a ghost's has been reaped."""

    def hear_orphan(self, ghost: Ghost) -> None:
        """The parent of a placeholder has ended."""

    def hear_end(self, ghost: Ghost) -> None:
        """A remnant or a placeholder has ended."""


class Ghosts:
    """All ghosts of this node."""

    def __init__(
        self, cluster: Cluster, ics: Ics, asking: Asking, launcher: Launcher,
        folder: Path = FOLDER,
    ) -> None:  # fmt: skip
        self._asking = asking
        self._launcher = launcher
        self._folder = folder
        self._by_pid: dict[int, Ghost] = {}
        self._by_id: dict[str, Ghost] = {}
        self._tasks = Tasks()
        self.kin: Kin | None = None
        self._take_over()
        cluster.on_change.append(self._look_for_losses)
        ics.serve("ghost-do", self._answer_do)
        ics.serve("ghost-cancel", self._answer_cancel)
        ics.serve("ghost-done", self._answer_done)
        ics.serve("ghost-close", self._answer_close)
        ics.serve("ghost-state", self._answer_state)
        ics.serve("ghost-end", self._answer_end)
        ics.serve("ghost-moved", self._answer_moved)
        ics.serve("ghost-where", self._answer_where)
        ics.serve("ghost-hold", self._answer_hold)

    def find(self, pid: int) -> Ghost | None:
        """Return the ghost of that PID."""
        return self._by_pid.get(pid)

    @property
    def pids(self) -> set[int]:
        """Of all ghosts."""
        return set(self._by_pid)

    # -- their lives -----------------------------------------------------------------------------

    def _take_over(self) -> None:
        """Find those that the daemon before this one had."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for path in self._folder.iterdir():
            try:
                ghost = Ghost.load(int(path.name), json.loads(read_text(path)))
            except (ValueError, SsiError):
                path.unlink()
                continue
            self._add(ghost)
            self._tasks.spawn(self._expect(ghost))

    async def _expect(self, ghost: Ghost) -> None:
        """Wait until a ghost has come to this daemon, or take it for dead."""
        waits = True
        while waits:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BACK_S if is_process(ghost) else 0):
                    await ghost.changes.wait_for(lambda: ghost.output is not None or ghost.over)
            # One that is stopped, as its body is, comes when it goes on.
            waits = ghost.output is None and not ghost.over and is_stopped(ghost.pid)
        if ghost.output is None:
            self._lose(ghost)

    def begin(self, pid: int, node: int) -> Ghost:
        """Return the ghost that process `pid` is; one that a daemon before this knew stays it."""
        ghost = self._by_pid.get(pid)
        if ghost and (is_process(ghost) or not ghost.begun):
            return ghost
        if ghost:
            self._lose(ghost)
        ghost = Ghost(secrets.token_hex(8), pid, node, start_of(pid))
        self.save(ghost)
        self._add(ghost)
        return ghost

    def adopt(
        self, pid: int, key: str, node: int, *, kind: Kind = Kind.GHOST, parent: int = 0,
        below: int = 0, keeps: bool = True,
    ) -> Ghost:  # fmt: skip
        """Return the ghost that process `pid` is about to become; its body is there already."""
        if known := self._by_id.get(key):
            return known
        ghost = Ghost(key, pid, node, start_of(pid), adopted=True, kind=kind, parent=parent)
        ghost.below = below
        ghost.users.ended = not keeps
        self.save(ghost)
        self._add(ghost)
        self._tasks.spawn(self._expect(ghost))
        return ghost

    def place(self, pid: int, node: int, parent: int) -> Ghost:
        """Return the placeholder that is to be born here for a child on `node`."""
        ghost = Ghost(
            secrets.token_hex(8), pid, node, 0, adopted=True, kind=Kind.PLACEHOLDER,
            parent=parent, below=node,
        )  # fmt: skip
        self.save(ghost)
        self._add(ghost)
        return ghost

    def list_placeholders(self, parent: int) -> list[Ghost]:
        """Return those that are children of process `parent`."""
        return [
            one for one in self._by_pid.values()
            if one.kind == Kind.PLACEHOLDER and one.parent == parent
        ]  # fmt: skip

    async def send_home(self, ghost: Ghost, move: str) -> None:
        """Have it become its body again, which comes with this move; raises OSError, SsiError."""
        if is_stopped(ghost.pid):
            wake(ghost.pid)
        async with asyncio.timeout(BACK_S):
            await ghost.changes.wait_for(lambda: ghost.output is not None or ghost.over)
        if ghost.over or not ghost.output:
            raise SsiError("its ghost has been killed")
        if kept := set().union(*ghost.users.others.values()):
            await self._send_and_keep(ghost, move, kept)
            return
        ghost.over = True
        for _, result in ghost.waiting.values():
            if not result.done():
                result.set_result((-EIO, b""))
        with contextlib.suppress(CallerGone):
            await ghost.output.order(pack_order(Order.HOME, data=move.encode()))
        self.forget(ghost)
        ghost.changes.tell()
        # It may have been told to stop just before, and hears nothing then.
        await wait_until(lambda: has_set_off(ghost.pid), within_s=BACK_S)

    async def _send_and_keep(self, ghost: Ghost, move: str, kept: Collection[int]) -> None:
        """Do so, and leave somebody for those who use its descriptors on other nodes."""
        ghost.users.ended = True
        before = ghost.pid
        words = f"{move}\0{','.join(map(str, sorted(kept)))}"
        await self.order(ghost, pack_order(Order.HOME, size=1, data=words.encode()))
        async with asyncio.timeout(BACK_S):
            await ghost.changes.wait_for(lambda: ghost.pid != before or ghost.over)
        await wait_until(lambda: has_set_off(before), within_s=BACK_S)

    def take_back(self, ghost: Ghost) -> None:
        """Have it be a ghost that was sent home, and is about to be one again.

        `ghost` is what it was then (`Ghost.again`).
        """
        if keeper := self._by_id.get(ghost.id):
            ghost.waiting = keeper.waiting
            self.forget(keeper)
            keeper.over = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(keeper.pid, signal.SIGKILL)
        self.save(ghost)
        self._add(ghost)
        self._tasks.spawn(self._expect(ghost))

    async def wait_back(self, ghost: Ghost, *, stopped: bool) -> None:
        """Wait until it is one; `stopped` if it was."""
        await ghost.changes.wait_for(lambda: ghost.output is not None or ghost.over)
        if stopped and not ghost.over:
            await self.set_state(ghost, signal.SIGSTOP << 8 | _STOPPED)

    def disown(self, pid: int) -> None:
        """It did not become one."""
        self.forget(self._by_pid[pid])

    def save(self, ghost: Ghost) -> None:
        """Have the next daemon know it as it is now."""
        path = self._folder / str(ghost.pid)
        fresh = path.with_suffix(".partial")
        write_bytes(fresh, wire.encode(ghost.dump()))
        fresh.rename(path)

    async def hold(self, node: int) -> None:
        """Have ghosts again for bodies on `node` that an earlier life of this node has begun."""
        try:
            answer = await self._asking.ask(node, "body-list", {})
        except SsiError as error:
            logger.warning("node%d does not say what it has of ours: %s", node, error)
            return
        for one in wire.get_objects(answer, "bodies"):
            pid, uid = wire.get_int(one, "pid", 1, MAX_PID), wire.get_int(one, "uid", 0, MAX_UID)
            await self._hold_one(Ghost(wire.get_text(one, "id"), pid, node, 0, held=True), uid)

    async def _hold_one(self, ghost: Ghost, uid: int) -> None:
        if ghost.id not in self._by_id and ghost.pid not in self._by_pid:
            self._add(ghost)
            await self._start_held(ghost, uid)

    async def _answer_hold(self, call: Call) -> Message:
        """Have a ghost for a process that was saved, and is about to go on on another node."""
        pid, key = wire.get_int(call.body, "pid", 1, MAX_PID), wire.get_text(call.body, "id")
        uid = wire.get_int(call.body, "uid", 0, MAX_UID)
        await self._hold_one(Ghost(key, pid, call.node, 0, held=True), uid)
        return {"held": key in self._by_id}

    async def _start_held(self, ghost: Ghost, uid: int) -> None:
        program = Program([PROGRAM, str(ghost.node), "its-command"], {}, pid=ghost.pid, uid=uid)
        try:
            await self._launcher.start(f"ghost.{ghost.id}", program, [])
            ghost.begun = start_of(ghost.pid)
        except OSError as error:
            logger.error("%d is a process of node%d, and here: %s", ghost.pid, ghost.node, error)
            self.forget(ghost)
            return
        self.save(ghost)
        self._tasks.spawn(self._forget_held(f"ghost.{ghost.id}"))

    async def _forget_held(self, key: str) -> None:
        await self._launcher.wait(key)
        self._launcher.forget(key)

    def _add(self, ghost: Ghost) -> None:
        self._by_pid[ghost.pid] = self._by_id[ghost.id] = ghost

    async def attend(self, ghost: Ghost, request: Request, output: Output) -> None:
        """Hear what a ghost reports, until it has ended."""
        if not ghost.begun:
            ghost.begun = start_of(ghost.pid)
            self.save(ghost)
        ghost.output = output
        telling = asyncio.create_task(self._tell_words(ghost))
        try:
            for packed, _ in ghost.waiting.values():
                await output.order(packed)
            await output.order(pack_order(Order.STARTED))
            ghost.changes.tell()
            while not ghost.over:
                await self._take_report(ghost, await request.inbox.receive_report(), request.uid)
        finally:
            telling.cancel()
            self._lose(ghost)

    async def _tell_words(self, ghost: Ghost) -> None:
        while True:
            await self._tell_body(ghost, *await ghost.words.get())

    def forget(self, ghost: Ghost) -> None:
        """It is none: its command has not been started."""
        self._by_id.pop(ghost.id, None)
        # It may have a successor by now.
        if self._by_pid.get(ghost.pid) is ghost:
            del self._by_pid[ghost.pid]
            (self._folder / str(ghost.pid)).unlink(missing_ok=True)

    def _lose(self, ghost: Ghost) -> None:
        """The process has ended, unless with its body then by a kill: so ends the body."""
        if self._by_id.get(ghost.id) is not ghost:
            return
        if ghost.kind == Kind.PLACEHOLDER:
            # Its parent may go elsewhere before it has heard of this.
            ghost.over = True
            if self.kin:
                self.kin.hear_end(ghost)
            return
        self.forget(ghost)
        for _, result in ghost.waiting.values():
            if not result.done():
                result.set_result((-EIO, b""))
        if ghost.kind == Kind.REMNANT:
            if self.kin:
                self.kin.hear_end(ghost)
        elif not ghost.over:
            self._tasks.spawn(self._tell_body(ghost, "body-kill", {}))
        ghost.over = True
        ghost.changes.tell()

    async def _tell_body(self, ghost: Ghost, name: str, body: Message) -> None:
        with contextlib.suppress(SsiError):
            await self._asking.ask(ghost.node, name, {"id": ghost.id, **body})

    def _look_for_losses(self, _: State, now: State) -> None:
        for ghost in list(self._by_pid.values()):
            for node in set(ghost.users.others) - now.view.alive:
                self._tasks.spawn(self._close(ghost, ghost.users.lose(node)))
            if (ghost.below or ghost.node) not in now.view.alive and not ghost.over:
                self._tasks.spawn(self._end_with_node(ghost))

    async def _end_with_node(self, ghost: Ghost) -> None:
        await ghost.changes.wait_for(lambda: ghost.output is not None or ghost.over)
        if not ghost.over and ghost.output:
            if ghost.kind == Kind.GHOST:
                with contextlib.suppress(CallerGone):
                    await ghost.output.error(f"onnode: node{ghost.node} was lost\r\n")
            await self.order(ghost, pack_order(Order.STATE, value=signal.SIGKILL))
            ghost.over = True

    # -- what a ghost says -----------------------------------------------------------------------

    async def _take_report(self, ghost: Ghost, report: bytes, uid: int) -> None:
        kind, number, result, data = parse_report(report)
        if kind == Report.RESULT and number in ghost.waiting:
            _, future = ghost.waiting.pop(number)
            if not future.done():
                future.set_result((result, data))
        elif kind == Report.KEEPER:
            self._pass_to(ghost, result, uid)
        elif kind in {Report.CHILD, Report.ALONE} or ghost.kind != Kind.GHOST:
            self._hear_kin(ghost, kind, number, result)
        elif kind == Report.SIGNAL:
            got = parse_signal(data)
            once = secrets.token_hex(8)
            ghost.words.put_nowait(("body-signal", {**dataclasses.asdict(got), "once": once}))
        elif kind == Report.ORPHAN:
            ghost.words.put_nowait(("body-orphan", {}))

    def _hear_kin(self, ghost: Ghost, kind: int, number: int, result: int) -> None:
        if self.kin is None:
            return
        if kind == Report.CHILD and ghost.adopted:
            if 0 < number <= MAX_PID and 0 <= result <= CONTINUED:
                self.kin.hear_child(ghost, number, result)
        elif kind == Report.ALONE:
            self.kin.hear_alone(ghost)
        elif kind == Report.ORPHAN and ghost.kind == Kind.PLACEHOLDER:
            self.kin.hear_orphan(ghost)

    def _pass_to(self, ghost: Ghost, pid: int, uid: int) -> None:
        """Its fork `pid` is the ghost from now on, if it is `uid`'s, who says so."""
        try:
            begun = start_of(pid)
            if pid in self._by_pid or read_caller(pid).uids[1] != uid:
                raise ProtocolError(f"{pid} as the keeper of {ghost.pid}")
        except (OSError, ValueError, IndexError):
            return  # it has just ended
        del self._by_pid[ghost.pid]
        (self._folder / str(ghost.pid)).rename(self._folder / str(pid))
        ghost.pid, ghost.begun = pid, begun
        self._by_pid[pid] = ghost
        self.save(ghost)
        ghost.changes.tell()

    # -- what bodies want ------------------------------------------------------------------------

    async def order(self, ghost: Ghost, packed: bytes) -> None:
        """Order it, as soon as it is there; one that has ended hears nothing."""
        await ghost.changes.wait_for(lambda: ghost.output is not None or ghost.over)
        if ghost.output and not ghost.over:
            with contextlib.suppress(CallerGone):
                await ghost.output.order(packed)

    def _ghost_of(self, call: Call) -> Ghost | None:
        """Return the ghost, if the asking node has its body."""
        ghost = self._by_id.get(wire.get_text(call.body, "id"))
        return ghost if ghost and ghost.node == call.node else None

    def _used_by(self, call: Call) -> Ghost | None:
        """Return the ghost, if the asking node has processes that use its descriptors."""
        ghost = self._by_id.get(wire.get_text(call.body, "id"))
        return ghost if ghost and call.node in {ghost.node, *ghost.users.others} else None

    async def _answer_do(self, call: Call) -> Message:
        ghost = self._used_by(call)
        number = _number_of(call)
        packed = pack_order(
            Order(wire.get_int(call.body, "order", Order.READ, Order.SHUTDOWN)), number=number,
            fd=wire.get_int(call.body, "fd", 0, 2**20),
            value=wire.get_int(call.body, "value", 0, 2**32 - 1),
            size=wire.get_int(call.body, "size", 0, 2**32 - 1),
            flags=wire.get_int(call.body, "flags", 0, 7), data=wire.get_bytes(call.body, "data"),
        )  # fmt: skip
        if ghost is None or ghost.held:
            return {"result": -EIO, "data": ""}
        if number not in ghost.waiting:
            ghost.waiting[number] = (packed, asyncio.get_running_loop().create_future())
        _, future = ghost.waiting[number]
        # One that has no daemon gets it when it comes to us.
        if ghost.output and not ghost.over:
            with contextlib.suppress(CallerGone):
                await ghost.output.order(packed)
        result, data = await asyncio.shield(future)
        return {"result": result, "data": wire.put_bytes(data)}

    async def _answer_cancel(self, call: Call) -> Message:
        if ghost := self._used_by(call):
            await self.order(ghost, pack_order(Order.CANCEL, number=_number_of(call)))
        return {}

    async def _answer_done(self, call: Call) -> Message:
        if ghost := self._used_by(call):
            await self.order(ghost, pack_order(Order.DONE, number=_number_of(call)))
        return {}

    async def _answer_close(self, call: Call) -> Message:
        fd = wire.get_int(call.body, "fd", 0, MAX_FD)
        if ghost := self._used_by(call):
            unused = [fd] if ghost.users.close(call.node, fd) else []
            await self._close(ghost, unused)
        return {}

    async def _close(self, ghost: Ghost, fds: Collection[int]) -> None:
        """Close what nobody uses any more, and end one of which nobody uses anything."""
        for fd in fds:
            await self.order(ghost, pack_order(Order.CLOSE, fd=fd))
        if ghost.users.gone and ghost.kind == Kind.REMNANT:
            # It may still be a parent: it says if it is not.
            self.save(ghost)
            await self.order(ghost, pack_order(Order.REAP))
        elif ghost.users.gone and ghost.kind == Kind.GHOST and not ghost.over:
            await self.order(ghost, pack_order(Order.STATE))
            ghost.over = True
        elif not ghost.over:
            self.save(ghost)

    async def _answer_state(self, call: Call) -> Message:
        ghost = self._ghost_of(call)
        if ghost is None:
            return {}
        status = wire.get_int(call.body, "status", 0, CONTINUED)
        others = wire.get_flag(call.body, "others")
        final = not os.WIFSTOPPED(status) and not os.WIFCONTINUED(status)
        for one in wire.get_objects(call.body, "offsets"):
            fd, offset = wire.get_int(one, "fd", 0, 2**20), wire.get_int(one, "offset", 0, 2**63)
            await self.order(ghost, pack_order(Order.SEEK, fd=fd, number=offset))
        await self.set_state(ghost, status, others=final and (others or bool(ghost.users.others)))
        if final:
            # Not before: who closes the last one would have it end in another way.
            ghost.users.ended = not others
            await self._close(ghost, [])
        return {}

    async def set_state(self, ghost: Ghost, status: int, *, others: bool = False) -> None:
        """Have it stop, go on or end; `others` if its descriptors are still used."""
        if os.WIFCONTINUED(status):
            if ghost.stops:
                # Not before it has done as it was told.
                await wait_until(lambda: is_stopped(ghost.pid), within_s=STOPS_S)
            ghost.stops = False
            wake(ghost.pid)
            return
        if os.WIFSTOPPED(status):
            if ghost.stops or is_stopped(ghost.pid):
                return  # it was when its body moved; two orders would stop it twice
            ghost.stops = True
        await self.order(ghost, pack_order(Order.STATE, value=status, size=int(others)))
        if not os.WIFSTOPPED(status):
            ghost.over = not others
            # It may have stopped with a body that was killed while it was stopped.
            wake(ghost.pid)

    async def _answer_moved(self, call: Call) -> Message:
        """The body is about to go on elsewhere, unless the ghost has been killed meanwhile."""
        ghost = self._by_id.get(wire.get_text(call.body, "id"))
        node = wire.get_int(call.body, "node", 1, MAX_NODE)
        if ghost is None or ghost.over or ghost.node not in {call.node, node}:
            return {"moved": False}
        if not self._asking.is_alive(node):
            return {"moved": False}
        opened = wire.get_ints(call.body, "fds", 0, MAX_FD)
        ghost.users.move(ghost.node, node, opened)
        ghost.users.ended = ghost.users.ended and ghost.kind != Kind.GHOST
        ghost.node = node
        self.save(ghost)
        return {"moved": True}

    async def _answer_where(self, call: Call) -> Message:
        """Tell where a ghost's body is; 0 if there is no such ghost."""
        ghost = self._by_id.get(wire.get_text(call.body, "id"))
        return {"node": ghost.node if ghost and not ghost.over else 0}

    async def _answer_end(self, call: Call) -> Message:
        """Nobody on the body's node uses its descriptors any more."""
        if ghost := self._ghost_of(call):
            ghost.users.ended = True
            await self._close(ghost, [])
        return {}


def _number_of(call: Call) -> int:
    """Return the number of an order, as no other node has it."""
    return wire.get_int(call.body, "number", 1, MAX_NUMBER) ^ call.node << NODE_SHIFT
