"""Descriptors of processes on other nodes: here they are of a stand-in, which ends as the process.

The kernel's own poll, waitid and close work on them. A signal sent by one goes to the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from ssi.common import wire
from ssi.common.errors import NodeLost, SsiError
from ssi.common.wire import Message
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.pids import origin_of
from ssi.node.process.asking import FOREVER_S, Asking
from ssi.node.process.caller import MAX_PID, read_memory
from ssi.node.process.foreign import Foreign, is_forged
from ssi.node.process.listener import GO_ON, HeldCall, Verdict
from ssi.node.process.places import Places
from ssi.node.process.signals import INFO_SIZE
from ssi.node.process.standins import StandIns

FOLDER = Path("/run/ssi/pidfds")
AGAIN_S = 0.2

# x86-64
OPEN, SEND_SIGNAL = 434, 424

NONBLOCK = os.O_NONBLOCK
"""The only flag of pidfd_open: one of a thread alone (PIDFD_THREAD) cannot be had."""


class Pidfds:
    """All of this node that are of processes elsewhere: one stand-in for each process."""

    def __init__(
        self, foreign: Foreign, asking: Asking, places: Places, stand_ins: StandIns, ics: Ics,
        folder: Path = FOLDER,
    ) -> None:  # fmt: skip
        self._foreign = foreign
        self._asking = asking
        self._places = places
        self._stand_ins = stand_ins
        self._folder = folder
        self._held: set[int] = set()
        self._watched: dict[int, set[int]] = {}
        """Whose end each node is to tell."""
        self._more: dict[int, asyncio.Event] = {}
        self._ready = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        foreign.judges[OPEN] = self._open
        foreign.judges[SEND_SIGNAL] = self._send_signal
        ics.serve("wait-exit", self._answer_wait_exit)

    async def take_over(self) -> None:
        """Hold what the daemon before this one held, whose stand-ins have been found."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for path in self._folder.iterdir():
            pid = int(path.name)
            if self._stand_ins.find(pid):
                await self._hold(pid)
            else:
                path.unlink()
        self._ready.set()

    # -- the calls -------------------------------------------------------------------------------

    async def _open(self, call: HeldCall) -> Verdict:
        pid, flags = call.int_at(0), call.int_at(1)
        if pid < 0 or flags & ~NONBLOCK or self._foreign.is_here(call, pid):
            return GO_ON
        answer = await self._foreign.ask_where(pid, "about", {"pid": pid, "what": "leads"})
        if refused := wire.get_int(answer, "error", 0, 4095):
            return Verdict(error=refused)
        await self._ready.wait()
        try:
            await self._hold(pid)
        except SsiError as error:
            raise OSError(errno.EAGAIN, str(error)) from error
        return Verdict(fd=os.pidfd_open(pid, flags))

    async def _send_signal(self, call: HeldCall) -> Verdict:
        fd, number, address = call.int_at(0), call.int_at(1), call.arguments[2]
        pid = _pid_of(call.thread, fd)
        is_ghost = self._places.is_ghost(pid)
        if not self._places.is_placeholder(pid) or (is_ghost and number != signal.SIGSTOP):
            return GO_ON
        if call.int_at(3):
            return Verdict(error=errno.EINVAL)
        info = read_memory(call.thread, address, INFO_SIZE) if address else b""
        if info and int.from_bytes(info[:4], "little", signed=True) != number:
            return Verdict(error=errno.EINVAL)
        if info and is_forged(info):
            return Verdict(error=errno.EPERM)
        return await self._foreign.send(call, pid, 0, number, info)

    # -- stand-ins -------------------------------------------------------------------------------

    async def _hold(self, pid: int) -> None:
        """Have a stand-in until the process has ended; raises OSError, SsiError."""
        if pid in self._held and pid in self._stand_ins:
            return
        (self._folder / str(pid)).touch()
        await self._stand_ins.hold(self, pid)
        self._held.add(pid)
        self._watch(pid, origin_of(pid))

    async def _release(self, pid: int) -> None:
        """The process has ended. What it was the parent of here is told by others."""
        self._held.discard(pid)
        (self._folder / str(pid)).unlink(missing_ok=True)
        await self._stand_ins.release(self, pid)

    def _watch(self, pid: int, node: int) -> None:
        """Be told by `node` when the process has ended."""
        if node in self._watched:
            self._watched[node].add(pid)
            self._more[node].set()
        else:
            self._watched[node] = {pid}
            self._more[node] = asyncio.Event()
            self._spawn(self._wait_for_ends(node))

    async def _wait_for_ends(self, node: int) -> None:
        """Release the stand-ins of those on `node` that end. One question asks for all of them."""
        try:
            while pids := self._watched[node]:
                self._more[node].clear()
                for pid in await self._ask_ends(node, sorted(pids)):
                    pids.discard(pid)
                    self._spawn(self._release(pid))
        except NodeLost:
            # A process may have come from there and be on another node.
            for pid in self._watched[node]:
                self._spawn(self._look_for(pid))
        finally:
            del self._watched[node], self._more[node]

    async def _ask_ends(self, node: int, pids: list[int]) -> list[int]:
        """Return which have ended; none if there are more to ask for. Raises NodeLost."""
        question = self._asking.ask(node, "wait-exit", {"pids": pids}, within_s=FOREVER_S)
        asking = asyncio.ensure_future(question)
        more = asyncio.ensure_future(self._more[node].wait())
        try:
            await asyncio.wait({asking, more}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                return []
            return wire.get_ints(asking.result(), "ended", 1, MAX_PID)
        finally:
            asking.cancel()
            more.cancel()

    async def _look_for(self, pid: int) -> None:
        """Its node is dead: watch it where it is, or take it for dead as well."""
        node = await self._foreign.find(pid)
        if node in {None, origin_of(pid), self._places.node}:
            await self._release(pid)
        else:
            assert node
            self._watch(pid, node)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- what others ask -------------------------------------------------------------------------

    async def _answer_wait_exit(self, call: Call) -> Message:
        """Answer as soon as one has ended. Of a ghost it is the same as of its body."""
        pids = wire.get_ints(call.body, "pids", 1, MAX_PID)
        ended: list[int] = []
        some = asyncio.Event()
        loop = asyncio.get_running_loop()

        def end(pid: int) -> None:
            ended.append(pid)
            loop.remove_reader(fds[pid])
            some.set()

        with contextlib.ExitStack() as opened:
            fds: dict[int, int] = {}
            for pid in set(pids):
                fd = -1 if pid in self._stand_ins else _open_pidfd(pid)
                if fd < 0:
                    ended.append(pid)
                    some.set()
                    continue
                fds[pid] = fd
                opened.callback(os.close, fd)
                opened.callback(loop.remove_reader, fd)
                loop.add_reader(fd, end, pid)
            await some.wait()
        return {"ended": ended}


def _open_pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1


def _pid_of(thread: int, fd: int) -> int:
    """Return of which process a descriptor of `thread` is; 0 if of none that is there."""
    try:
        text = Path(f"/proc/{thread}/fdinfo/{fd}").read_text()
    except OSError:
        return 0
    fields = dict(line.partition(":")[::2] for line in text.splitlines())
    return max(0, int(fields.get("Pid", "0")))
