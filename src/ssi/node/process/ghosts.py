"""Ghosts: processes of this node whose bodies run on others (native/onnode.c).

A ghost does what its body wants done with descriptors of this node, tells what signals it gets, and
stops, goes on and ends as the body does. It outlives this daemon: the next one knows it by the file
that is written before anything is asked of another node.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import json
import logging
import os
import secrets
import signal
import struct
from collections.abc import Awaitable
from pathlib import Path

from ssi.common import wire
from ssi.common.changes import Changes
from ssi.common.errors import SsiError
from ssi.common.wire import Message
from ssi.node.cluster import Cluster
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.launcher import Launcher, Program
from ssi.node.local import CallerGone, Output, Request
from ssi.node.process.asking import Asking
from ssi.node.process.caller import MAX_PID, MAX_UID
from ssi.node.process.orders import (
    OWN_SIGNAL,
    Order,
    Report,
    pack_order,
    parse_report,
    parse_signal,
)
from ssi.node.state.state import State

logger = logging.getLogger(__name__)

FOLDER = Path("/run/ssi/ghosts")
PROGRAM = "/usr/bin/onnode"
BACK_S = 30.0
"""A ghost that has not come back to a new daemon by then is not one any more."""

MAX_NUMBER = 2**63
EIO = 5
_QUEUEINFO = 129  # x86-64
_INFO = struct.Struct("=iii4xIIi")
INFO_SIZE = 128


def start_of(pid: int) -> int:
    """Return when process `pid` began, in ticks since boot: with the PID it names one process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


@dataclasses.dataclass(slots=True, eq=False)
class Ghost:
    """One of them."""

    id: str
    pid: int
    node: int
    """Where its body is."""
    begun: int
    """When the process began, in ticks."""
    output: Output | None = None
    """To it; None while it is on its way to a new daemon."""
    held: bool = False
    """This node has been booted anew since: the descriptors are gone."""
    over: bool = False
    """The body has ended, and the ghost has been told; or it is dead itself."""
    waiting: dict[int, tuple[bytes, asyncio.Future[tuple[int, bytes]]]] = dataclasses.field(
        default_factory=dict
    )
    """Orders without an answer, by their numbers."""
    words: asyncio.Queue[tuple[str, Message]] = dataclasses.field(default_factory=asyncio.Queue)
    """What its body is to be told, in this order."""
    changes: Changes = dataclasses.field(default_factory=Changes)


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
        self._tasks: set[asyncio.Task[None]] = set()
        self._take_over()
        cluster.on_change.append(self._look_for_losses)
        ics.serve("ghost-do", self._answer_do)
        ics.serve("ghost-cancel", self._answer_cancel)
        ics.serve("ghost-done", self._answer_done)
        ics.serve("ghost-close", self._answer_close)
        ics.serve("ghost-state", self._answer_state)
        ics.serve("ghost-end", self._answer_end)

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
                saved = json.loads(path.read_text())
                ghost = Ghost(
                    wire.get_text(saved, "id"), int(path.name), wire.get_int(saved, "node", 1, 127),
                    wire.get_int(saved, "begun", 0, MAX_NUMBER), held=wire.get_flag(saved, "held"),
                )  # fmt: skip
            except (ValueError, SsiError):
                path.unlink()
                continue
            self._add(ghost)
            self._spawn(self._expect(ghost))

    async def _expect(self, ghost: Ghost) -> None:
        """Wait until a ghost has come to this daemon, or take it for dead."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BACK_S if is_process(ghost) else 0):
                await ghost.changes.wait_for(lambda: ghost.output is not None)
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
        self._save(ghost)
        self._add(ghost)
        return ghost

    def _save(self, ghost: Ghost) -> None:
        path = self._folder / str(ghost.pid)
        fresh = path.with_suffix(".partial")
        fields = {name: getattr(ghost, name) for name in ("id", "node", "begun", "held")}
        fresh.write_text(json.dumps(fields))
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
            ghost = Ghost(wire.get_text(one, "id"), pid, node, 0, held=True)
            if ghost.id not in self._by_id:
                self._add(ghost)
                await self._start_held(ghost, uid)

    async def _start_held(self, ghost: Ghost, uid: int) -> None:
        program = Program([PROGRAM, str(ghost.node), "its-command"], {}, pid=ghost.pid, uid=uid)
        try:
            await self._launcher.start(f"ghost.{ghost.id}", program, [])
            ghost.begun = start_of(ghost.pid)
        except OSError as error:
            logger.error("%d is a process of node%d, and here: %s", ghost.pid, ghost.node, error)
            self.forget(ghost)
            return
        self._save(ghost)
        self._spawn(self._forget_held(f"ghost.{ghost.id}"))

    async def _forget_held(self, key: str) -> None:
        await self._launcher.wait(key)
        self._launcher.forget(key)

    def _add(self, ghost: Ghost) -> None:
        self._by_pid[ghost.pid] = self._by_id[ghost.id] = ghost

    async def attend(self, ghost: Ghost, request: Request, output: Output) -> None:
        """Hear what a ghost reports, until it has ended."""
        ghost.output = output
        telling = asyncio.create_task(self._tell_words(ghost))
        try:
            for packed, _ in ghost.waiting.values():
                await output.order(packed)
            await output.order(pack_order(Order.STARTED))
            ghost.changes.tell()
            while not ghost.over:
                await self._take_report(ghost, await request.inbox.receive_report())
        finally:
            telling.cancel()
            self._lose(ghost)

    async def _tell_words(self, ghost: Ghost) -> None:
        while True:
            await self._tell_body(ghost, *await ghost.words.get())

    def forget(self, ghost: Ghost) -> None:
        """It is none: its command has not been started."""
        self._by_pid.pop(ghost.pid, None)
        self._by_id.pop(ghost.id, None)
        (self._folder / str(ghost.pid)).unlink(missing_ok=True)

    def _lose(self, ghost: Ghost) -> None:
        """The process has ended, unless with its body then by a kill: so ends the body."""
        if self._by_id.get(ghost.id) is not ghost:
            return
        self.forget(ghost)
        for _, result in ghost.waiting.values():
            if not result.done():
                result.set_result((-EIO, b""))
        if not ghost.over:
            self._spawn(self._tell_body(ghost, "body-kill", {}))
        ghost.over = True
        ghost.changes.tell()

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell_body(self, ghost: Ghost, name: str, body: Message) -> None:
        with contextlib.suppress(SsiError):
            await self._asking.ask(ghost.node, name, {"id": ghost.id, **body})

    def _look_for_losses(self, _: State, now: State) -> None:
        for ghost in list(self._by_pid.values()):
            if ghost.node not in now.view.alive and not ghost.over:
                self._spawn(self._end_with_node(ghost))

    async def _end_with_node(self, ghost: Ghost) -> None:
        await ghost.changes.wait_for(lambda: ghost.output is not None or ghost.over)
        if not ghost.over and ghost.output:
            with contextlib.suppress(CallerGone):
                await ghost.output.error(f"onnode: node{ghost.node} was lost\r\n")
            await self._order(ghost, pack_order(Order.STATE, value=signal.SIGKILL))
            ghost.over = True

    # -- what a ghost says -----------------------------------------------------------------------

    async def _take_report(self, ghost: Ghost, report: bytes) -> None:
        kind, number, result, data = parse_report(report)
        if kind == Report.RESULT and number in ghost.waiting:
            _, future = ghost.waiting.pop(number)
            if not future.done():
                future.set_result((result, data))
        elif kind == Report.SIGNAL:
            got = parse_signal(data)
            once = secrets.token_hex(8)
            ghost.words.put_nowait(("body-signal", {**dataclasses.asdict(got), "once": once}))
        elif kind == Report.ORPHAN:
            ghost.words.put_nowait(("body-orphan", {}))

    # -- what bodies want ------------------------------------------------------------------------

    async def _order(self, ghost: Ghost, packed: bytes) -> None:
        await ghost.changes.wait_for(lambda: ghost.output is not None or ghost.over)
        if ghost.output and not ghost.over:
            with contextlib.suppress(CallerGone):
                await ghost.output.order(packed)

    def _ghost_of(self, call: Call) -> Ghost | None:
        ghost = self._by_id.get(wire.get_text(call.body, "id"))
        return ghost if ghost and ghost.node == call.node else None

    async def _answer_do(self, call: Call) -> Message:
        ghost = self._ghost_of(call)
        number = wire.get_int(call.body, "number", 1, MAX_NUMBER)
        packed = pack_order(
            Order(wire.get_int(call.body, "order", Order.READ, Order.TERMINAL)), number=number,
            fd=wire.get_int(call.body, "fd", 0, 2**20),
            value=wire.get_int(call.body, "value", 0, 2**32 - 1),
            size=wire.get_int(call.body, "size", 0, 2**32 - 1),
            flags=wire.get_int(call.body, "flags", 0, 3), data=wire.get_bytes(call.body, "data"),
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
        if ghost := self._ghost_of(call):
            number = wire.get_int(call.body, "number", 1, MAX_NUMBER)
            await self._order(ghost, pack_order(Order.CANCEL, number=number))
        return {}

    async def _answer_done(self, call: Call) -> Message:
        if ghost := self._ghost_of(call):
            number = wire.get_int(call.body, "number", 1, MAX_NUMBER)
            await self._order(ghost, pack_order(Order.DONE, number=number))
        return {}

    async def _answer_close(self, call: Call) -> Message:
        if ghost := self._ghost_of(call):
            fd = wire.get_int(call.body, "fd", 0, 2**20)
            await self._order(ghost, pack_order(Order.CLOSE, fd=fd))
        return {}

    async def _answer_state(self, call: Call) -> Message:
        ghost = self._ghost_of(call)
        if ghost is None:
            return {}
        status = wire.get_int(call.body, "status", 0, 0xFFFF)
        others = wire.get_flag(call.body, "others")
        for one in wire.get_objects(call.body, "offsets"):
            fd, offset = wire.get_int(one, "fd", 0, 2**20), wire.get_int(one, "offset", 0, 2**63)
            await self._order(ghost, pack_order(Order.SEEK, fd=fd, number=offset))
        if os.WIFCONTINUED(status):
            wake(ghost.pid)
            return {}
        await self._order(ghost, pack_order(Order.STATE, value=status, size=int(others)))
        if not os.WIFSTOPPED(status):
            ghost.over = not others
            # It may have stopped with a body that was killed while it was stopped.
            wake(ghost.pid)
        return {}

    async def _answer_end(self, call: Call) -> Message:
        """Nobody on the body's node uses its descriptors any more."""
        if ghost := self._ghost_of(call):
            await self._order(ghost, pack_order(Order.STATE))
            ghost.over = True
        return {}


def is_process(ghost: Ghost) -> bool:
    """Tell whether the process that became this ghost is there."""
    try:
        return start_of(ghost.pid) == ghost.begun
    except (OSError, ValueError, IndexError):
        return False


def wake(pid: int) -> None:
    """Continue a ghost that has stopped with its body; not a word for the body."""
    info = _INFO.pack(signal.SIGCONT, 0, -1, os.getpid(), 0, OWN_SIGNAL).ljust(INFO_SIZE, b"\0")
    ctypes.CDLL(None).syscall(
        ctypes.c_long(_QUEUEINFO), ctypes.c_long(pid), ctypes.c_long(signal.SIGCONT), info
    )
