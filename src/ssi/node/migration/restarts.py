"""Processes that were saved and go on: restored as a child of `restart`, with its terminal.

`restart` makes a child with the process's PID, which becomes CRIU, which becomes the process.
Nothing is believed: what the file says must be signed, who asks must have the rights that it gives,
and once all is restored, and held, rights and files are compared with what was saved.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import logging
import math
import os
import platform
import resource
import secrets
import shutil
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import NodeLost
from ssi.common.nodes import MAX_NODE
from ssi.common.wire import Message
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.migration import belongings, criu, rewrite, room
from ssi.node.migration import saved as files
from ssi.node.migration.barrier import Answer, Barrier, Question, Verdict
from ssi.node.migration.belongings import Belongings
from ssi.node.migration.criu import CannotMove
from ssi.node.migration.images import Fields, Image
from ssi.node.migration.rewrite import FileType
from ssi.node.migration.saved import Saved, Source
from ssi.node.migration.saves import has_rights, read_processor
from ssi.node.pids import any_pid, origin_of
from ssi.node.process.asking import Asking
from ssi.node.process.bodies import Body
from ssi.node.process.caller import MAX_PID, Caller, read_caller
from ssi.node.process.device import get_descriptor
from ssi.node.process.ends import read_zombie
from ssi.node.process.foreign import Foreign
from ssi.node.process.jobcontrol import parent_of
from ssi.node.process.places import Places
from ssi.node.processes import read_status
from ssi.node.smallfiles import read_text
from ssi.node.waiting import wait_readable

logger = logging.getLogger(__name__)

READY_S = 120.0
ENDED_S = 3.0
AGAIN_S = 0.1
LIMITS = 16
STANDARD = 3

_GROUP, _SESSION = 3, 4
_ENTRY_TYPE, _REGULAR, _NAME, _SIZE = 1, 3, 6, 8

Start = Callable[[int, str], Awaitable[int]]
"""Has `restart` make a child with a PID that becomes what a move is of; returns an errno."""


@dataclasses.dataclass(slots=True, eq=False)
class _Restart:
    """One process that is to go on here."""

    saved: Saved
    parent: int
    """The process of `restart`."""
    caller: Caller
    folder: Path
    move: str
    body: Body | None = None
    """For one whose PID is another node's."""
    ready: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    answer: asyncio.Future[Verdict] = dataclasses.field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    @property
    def pid(self) -> int:
        return self.saved.pid

    async def hear(self, question: Question, number: int, asker: int) -> Answer:
        """Answer homecoming, and CRIU's plugin."""
        terminals = dict(self.saved.terminals)
        if question == Question.FILE and number in terminals:
            return Answer(Verdict.GO_ON, await asyncio.to_thread(self._open, terminals[number]))
        if question == Question.HOME and asker == self.pid and parent_of(asker) == self.parent:
            images = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            program = criu.restore(self.move, self.pid)
            return Answer(Verdict.GO_ON, images, program.argv, program.environment)
        if question == Question.CRIU:
            return Answer(Verdict.GO_ON)
        if question == Question.READY:
            self.ready.set()
            return Answer(await asyncio.shield(self.answer))
        return Answer(Verdict.REFUSED)

    def _open(self, fd: int) -> int:
        """Return what a descriptor that was a terminal leads to: the one of `restart`."""
        parent = os.pidfd_open(self.parent)
        try:
            if fd < STANDARD:
                return get_descriptor(parent, fd)
            mine = [get_descriptor(parent, one) for one in range(STANDARD)]
        finally:
            os.close(parent)
        found = next((one for one in mine if os.isatty(one)), mine[0])
        for one in mine:
            if one != found:
                os.close(one)
        return found

    def end(self, verdict: Verdict) -> None:
        if not self.answer.done():
            self.answer.set_result(verdict)


class Restarts:
    """All of this node."""

    def __init__(
        self, foreign: Foreign, asking: Asking, places: Places, barrier: Barrier, ics: Ics
    ) -> None:
        self._foreign = foreign
        self._asking = asking
        self._places = places
        self._barrier = barrier
        ics.serve("holder", foreign.pass_on(self._answer_holder))

    async def restart(self, source: Source, caller: Caller, start: Start) -> None:
        """Have a process go on; raises SsiError with the reason if it does not."""
        saved = await files.receive_head(source, await asyncio.to_thread(files.read_key))
        check_rights(saved, caller)
        check_machine(saved)
        await self._check_free(saved)
        await criu.check_installed()
        await criu.learn_kernel()
        room.check(saved.pages)
        move = secrets.token_hex(16)
        folder = await room.make(move)
        restart = _Restart(saved, caller.pid, caller, folder, move)
        try:
            await files.receive_images(source, saved, folder)
            await asyncio.to_thread(_fit, restart)
            await self._restore(restart, start)
        except ProcessLookupError as error:
            raise CannotMove("it has ended while it was restored") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    # -- its PID ---------------------------------------------------------------------------------

    async def _check_free(self, saved: Saved) -> None:
        """Raise CannotMove, with who has it, if its PID or one of its threads' is taken."""
        for pid in dict.fromkeys((saved.pid, *saved.threads)):
            if pid == saved.pid or Path(f"/proc/{pid}").exists():
                await self._check_pid(pid)

    async def _check_pid(self, pid: int) -> None:
        answer = await self._foreign.ask_where(pid, "holder", {"pid": pid})
        if answer["error"] != errno.ESRCH:
            whose = wire.get_text(answer, "command")
            node = wire.get_int(answer, "node", 1, MAX_NODE)
            raise CannotMove(f"PID {pid} is taken, by {whose!r} on node{node}", number=errno.EEXIST)

    async def _while_taken(self, pid: int) -> AsyncIterator[None]:
        """Yield as long as what has just ended may have the PID; raises CannotMove if it is used.

        Until its parent has heard of the end, that is: `checkpoint -k` and a kill are over before.
        """
        until = time.monotonic() + ENDED_S
        yield
        while time.monotonic() < until:
            await asyncio.sleep(AGAIN_S)
            await self._check_pid(pid)
            yield

    async def _answer_holder(self, call: Call) -> Message:
        pid = wire.get_int(call.body, "pid", 1, MAX_PID)
        with contextlib.suppress(OSError):
            if read_zombie(pid) is None:
                return {"error": 0, "command": read_text(f"/proc/{pid}/comm").rstrip("\n")}
        return {"error": errno.ESRCH}

    # -- restoring -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _expecting(self, restart: _Restart) -> Iterator[None]:
        """Have the rest of this daemon know of it, and answer the plugin."""
        if origin_of(restart.pid) != self._places.node:
            bodies = self._places.bodies
            restart.body = bodies.expect(secrets.token_hex(8), 0, 0, pinned=False)
            restart.body.pid = restart.pid
        self._places.arriving.add(restart.pid)
        self._barrier.moves[restart.move] = restart.hear
        try:
            yield
        finally:
            del self._barrier.moves[restart.move]
            self._places.arriving.discard(restart.pid)

    async def _restore(self, restart: _Restart, start: Start) -> None:
        with self._expecting(restart):
            try:
                await self._places.tell_move(restart.pid)
                # Its threads may have PIDs of any node.
                with any_pid(self._places.node, rewrite.find_highest(restart.folder)):
                    await self._start(restart, start)
                    await self._check_held(restart)
                await self._begin(restart)
            except BaseException:
                restart.end(Verdict.KILL)
                if restart.body:
                    await asyncio.shield(self._places.bodies.drop(restart.body))
                raise
            restart.end(Verdict.GO_ON)

    async def _start(self, restart: _Restart, start: Start) -> None:
        """Have it made and restored; raises CannotMove unless it is held in the end."""
        failure = errno.EEXIST
        async for _ in self._while_taken(restart.pid):
            failure = await start(restart.pid, restart.move)
            if failure != errno.EEXIST:
                break
        if failure:
            _raise_failure(restart.pid, failure)
        pidfd = os.pidfd_open(restart.pid)
        ended = asyncio.ensure_future(wait_readable(pidfd))
        ready = asyncio.ensure_future(restart.ready.wait())
        try:
            await asyncio.wait({ended, ready}, timeout=READY_S, return_when=asyncio.FIRST_COMPLETED)
            if not restart.ready.is_set():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                raise CannotMove(criu.read_errors(restart.folder))
        finally:
            ended.cancel()
            ready.cancel()
            # The reader is taken away first.
            await asyncio.gather(ended, ready, return_exceptions=True)
            os.close(pidfd)

    async def _check_held(self, restart: _Restart) -> None:
        """Raise CannotMove unless what is held has the rights and files that it may have."""
        check_process(restart.pid, restart.caller)
        if restart.caller.uids[1]:
            lower_limits(restart.pid, restart.parent)
        now = await asyncio.to_thread(Belongings.read, restart.pid)
        found = rewrite.list_files(restart.folder)
        others = {fd for fd, (_, kind) in found.items() if kind == FileType.EXTERNAL}
        restart.saved.belongings.check_restored(now, others)

    async def _begin(self, restart: _Restart) -> None:
        """It is about to go on: its PID is another node's to give, and has to be kept there."""
        body = restart.body
        if body is None:
            return
        home = origin_of(restart.pid)
        words = {"id": body.id, "pid": restart.pid, "uid": read_caller(restart.pid).uids[0]}
        # Without that node, it will ask when it is there again.
        with contextlib.suppress(NodeLost):
            async for _ in self._while_taken(restart.pid):
                answer = await self._asking.ask(home, "ghost-hold", words)
                if wire.get_flag(answer, "held"):
                    body.home = home
                    break
            else:
                raise CannotMove(f"PID {restart.pid} is taken on node{home}", number=errno.EEXIST)
        self._places.bodies.begin_elsewhere(body)


def _raise_failure(pid: int, failure: int) -> None:
    if failure == errno.EEXIST:
        # Of a group or a session, say, whose leader has ended.
        raise CannotMove(f"PID {pid} is in use on this node", number=failure)
    if failure == errno.EPERM:
        raise CannotMove("it may get no new privileges here, which `restart` needs", number=failure)
    raise CannotMove(f"no process {pid} can be made: {os.strerror(failure)}", number=failure)


def check_rights(saved: Saved, caller: Caller) -> None:
    """Raise CannotMove if `caller` may not be what was saved."""
    if not caller.uids[1]:
        return
    user = caller.uids[1]
    if set(saved.uids) != {user}:
        whose = next((uid for uid in saved.uids if uid != user), 0)
        raise CannotMove(f"it is a process of user {whose}, not yours", number=errno.EPERM)
    if strangers := {*saved.gids, *saved.groups} - {caller.gids[1], *caller.groups}:
        raise CannotMove(f"it is in group {min(strangers)}, and you are not", number=errno.EPERM)


def check_process(pid: int, caller: Caller) -> None:
    """Raise CannotMove if a process that is held has rights that `caller` has not."""
    if not caller.uids[1]:
        return
    fields = read_status(pid)
    users = {int(word) for word in fields["Uid"]}
    groups = {int(word) for name in ("Gid", "Groups") for word in fields[name]}
    theirs = {caller.gids[1], *caller.groups}
    if users != {caller.uids[1]} or not groups <= theirs or has_rights(fields):
        raise CannotMove("it has rights that you have not", number=errno.EPERM)


def lower_limits(pid: int, parent: int) -> None:
    """Have a process that is held not exceed the limits of another one; raises OSError."""
    for number in range(LIMITS):
        most = resource.prlimit(parent, number)[1]
        own = resource.prlimit(pid, number)
        lowered = tuple(min(value, most, key=_as_limit) for value in own)
        if lowered != own:
            resource.prlimit(pid, number, (lowered[0], lowered[1]))
    nice = os.getpriority(os.PRIO_PROCESS, parent)
    if os.getpriority(os.PRIO_PROCESS, pid) < nice:
        os.setpriority(os.PRIO_PROCESS, pid, nice)


def _as_limit(value: int) -> float:
    return math.inf if value == resource.RLIM_INFINITY else value


def check_machine(saved: Saved) -> None:
    """Raise CannotMove if it may use what this node's processor cannot do."""
    if missing := set(saved.processor) - set(read_processor()):
        words = " ".join(sorted(missing)[:5])
        raise CannotMove(f"this processor lacks what the one of node{saved.node} had: {words}")
    if saved.kernel != platform.release():
        logger.info("a process of kernel %s, and this is %s", saved.kernel, platform.release())


def _fit(restart: _Restart) -> None:
    """Make the images fit for who restarts it; raises CannotMove."""
    _set_sizes(restart.folder, belongings.find_sizes(restart.saved.belongings))
    tree = Image(restart.folder / "pstree.img")
    for entry in tree.entries:
        entry.set(_GROUP, os.getpgid(restart.parent))
        entry.set(_SESSION, os.getsid(restart.parent))
    tree.save()
    rewrite.set_clocks(restart.folder, restart.saved.clocks)


def _set_sizes(folder: Path, sizes: dict[str, int]) -> None:
    """Have CRIU expect files that have grown since."""
    image = Image(folder / "files.img")
    for entry in image.entries:
        if entry.number(_ENTRY_TYPE) == FileType.REGULAR:
            entry.change(_REGULAR, lambda one: _set_size(one, sizes))
    image.save()


def _set_size(details: Fields, sizes: dict[str, int]) -> None:
    name = os.fsdecode(details.text(_NAME))
    if name in sizes and details.has(_SIZE):
        details.set(_SIZE, sizes[name])
