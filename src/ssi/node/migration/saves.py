"""Processes that are saved: copied while they are held, and then going on as before.

The node of the process dumps it, as for a move; the images come to the node of who asked, and from
there to his command, which alone writes the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import logging
import os
import platform
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.wire import Message
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics, Stream
from ssi.node.migration import criu, landing, rewrite, room, terminals, transfer
from ssi.node.migration.barrier import Answer, Barrier, Question, Verdict
from ssi.node.migration.belongings import Belongings
from ssi.node.migration.clocks import read_clocks
from ssi.node.migration.criu import CannotMove
from ssi.node.migration.departures import find_tracer
from ssi.node.migration.holder import Holder, wait_first
from ssi.node.migration.losses import find_losses, is_terminal
from ssi.node.migration.obstacles import Inquiry, Obstacles
from ssi.node.migration.pagers import Pagers
from ssi.node.migration.saved import Saved
from ssi.node.process.caller import MAX_PID, Caller, read_caller
from ssi.node.process.foreign import Foreign
from ssi.node.process.places import Places
from ssi.node.processes import read_status, reap
from ssi.node.smallfiles import read_bytes, read_text, write_bytes
from ssi.node.waiting import wait_until

logger = logging.getLogger(__name__)

FOLDER = Path("/run/ssi/saves")
TRACED_S = 5.0
ANSWER_S = 600.0
"""For who asked to have the file on disk, if the process is to wait for that."""

_ABOUT = "about.img"
"""What the process's node says of it, sent with the images."""

_CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapAmb")


def check_owner(pid: int, caller: Caller) -> None:
    """Raise CannotMove unless `caller` may read the memory of a process, as for ptrace(2).

    To be allowed to signal it is not enough: a program with its owner's rights may hold secrets.
    """
    if not caller.uids[1]:
        return
    target, fields = read_caller(pid), read_status(pid)
    users, groups = {*target.uids, int(fields["Uid"][3])}, {*target.gids, int(fields["Gid"][3])}
    if caller.uids[0] not in users:
        raise CannotMove("it is not yours", number=errno.EPERM)
    owner = Path(f"/proc/{pid}").stat().st_uid
    if users | {owner} != {caller.uids[0]} or groups != {caller.gids[0]} or has_rights(fields):
        raise CannotMove("it has rights that you have not", number=errno.EPERM)


def has_rights(fields: dict[str, list[str]]) -> bool:
    """Tell whether a process has capabilities, by its status."""
    return any(int(fields[name][0], 16) for name in _CAPABILITIES)


def read_processor() -> list[str]:
    """Return what this node's processor can do."""
    for line in read_text("/proc/cpuinfo").splitlines():
        name, _, words = line.partition(":")
        if name.strip() == "flags":
            return words.split()
    return []


def count_pages(pid: int) -> int:
    """Return how much of a process's memory is there; raises ProcessLookupError."""
    try:
        return int(read_text(f"/proc/{pid}/statm").split()[1])
    except OSError as error:
        raise ProcessLookupError(pid) from error


@dataclasses.dataclass(slots=True, eq=False)
class _Save:
    """One process of this node that is being saved."""

    pid: int
    move: str
    dumped: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    answer: asyncio.Future[Answer] = dataclasses.field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    @property
    def folder(self) -> Path:
        return FOLDER / self.move

    async def hear(self, question: Question, _number: int, _asker: int) -> Answer:
        if question == Question.DUMPED:
            self.dumped.set()
            return await asyncio.shield(self.answer)
        return Answer(Verdict.GO_ON)

    def release(self, verdict: Verdict) -> None:
        """Have it go on, or end; once."""
        if not self.answer.done():
            self.answer.set_result(Answer(verdict))


@dataclasses.dataclass(slots=True)
class Taken:
    """A process of which all is here that is to be written."""

    saved: Saved
    folder: Path
    stream: Stream

    async def end(self, *, kill: bool) -> None:
        """It is written: have the process, if it is held, end or go on; raises SsiError."""
        await self.stream.send({"kill": kill})
        await self.stream.answer()


class Saves:
    """All of this node."""

    def __init__(
        self, foreign: Foreign, places: Places, barrier: Barrier, obstacles: Obstacles,
        pagers: Pagers, ics: Ics,
    ) -> None:  # fmt: skip
        self._foreign = foreign
        self._places = places
        self._barrier = barrier
        self._obstacles = obstacles
        self._pagers = pagers
        self._ics = ics
        # Of a daemon that was killed.
        shutil.rmtree(FOLDER, ignore_errors=True)
        ics.serve("save", self._answer_save)
        self._inquiry = Inquiry("save-obstacles", check_owner, self._find, foreign, ics)

    async def ask(self, pid: int, caller: Caller) -> list[str]:
        """Return what keeps a process of any node from being saved; raises CannotMove."""
        return await self._inquiry.ask(pid, caller)

    async def _find(self, pid: int) -> list[str]:
        """Return what keeps a process of this node; raises ProcessLookupError, or CannotMove."""
        found = await self._obstacles.find(pid, to_leave=False)
        return found or await asyncio.to_thread(lambda: list(find_losses(pid)))

    # -- for who asks ----------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def take(self, pid: int, caller: Caller, *, hold: bool) -> AsyncIterator[Taken]:
        """Have all of a process here; raises SsiError. If it is to be held, it is until the end."""
        node = await self._foreign.find(pid)
        if node is None:
            raise CannotMove(f"there is no process {pid}", number=errno.ESRCH)
        words = {"pid": pid, "caller": caller.dump(), "hold": hold}
        async with self._ics.call(node, "save", words) as stream:
            try:
                folder = await self._receive(stream, node)
            except (OSError, ProtocolError) as error:
                raise CannotMove(f"node{node} does not send it: {error}") from error
            try:
                about = wire.decode(read_bytes(folder / _ABOUT))
                (folder / _ABOUT).unlink()
                yield Taken(Saved.load(about), folder, stream)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    async def _receive(self, stream: Stream, node: int) -> Path:
        """Have the images come; return their folder."""
        first = await stream.receive()
        if first is None:
            await stream.answer()
            raise ProtocolError("no word of it")
        room.check(wire.get_int(first, "pages", 0, 2**40))
        folder = await room.make(secrets.token_hex(8))
        try:
            with landing.landing(self._places.node, node) as place:
                await stream.send(place.describe())
                connection = await place.accept()
            with connection:
                await transfer.alone(connection, transfer.receive_all, folder)
            if await stream.receive() is None:
                raise ProtocolError("it has not come whole")
        except (OSError, ProtocolError):
            shutil.rmtree(folder, ignore_errors=True)
            # Why there is nothing more, the other side knows best.
            await stream.answer()
            raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder

    # -- for the process -------------------------------------------------------------------------

    async def _answer_save(self, call: Call) -> Message:
        pid = wire.get_int(call.body, "pid", 1, MAX_PID)
        caller = Caller.load(wire.get_object(call.body, "caller"))
        try:
            await self._save(call, pid, caller)
        except ProcessLookupError as error:
            raise CannotMove(f"there is no process {pid}", number=errno.ESRCH) from error
        except CannotMove as error:
            raise CannotMove(f"{pid}: {error}", number=error.number) from error
        return {}

    async def _save(self, call: Call, pid: int, caller: Caller) -> None:
        check_owner(pid, caller)
        await self._pagers.wait(pid)
        await wait_until(lambda: not find_tracer(pid), within_s=TRACED_S)
        if found := await self._find(pid):
            raise CannotMove("; ".join(found), number=errno.EBUSY)
        await criu.check_installed()
        await criu.learn_kernel()
        await call.send({"pages": count_pages(pid)})
        place = await call.receive()
        if place is None:
            raise ProtocolError("a save without a place for it")
        save = _Save(pid, secrets.token_hex(8))
        save.folder.mkdir(mode=0o700, parents=True)
        self._barrier.moves[save.move] = save.hear
        try:
            with await landing.connect(self._places.node, call.node, place) as connection:
                holder = Holder(criu.dump(save.move, pid, save.folder, connection))
                try:
                    await _wait_dumped(save, holder)
                    about = await asyncio.to_thread(self._describe, save, caller)
                    if not wire.get_flag(call.body, "hold"):
                        save.release(Verdict.GO_ON)
                    write_bytes(save.folder / _ABOUT, wire.encode(about.dump()))
                    await transfer.alone(connection, transfer.send_images, save.folder)
                    await call.send({})
                    await self._await_end(call, save)
                finally:
                    save.release(Verdict.GO_ON)
                    await holder.ended.wait()
                    reap(holder.pid)
        except OSError as error:
            raise CannotMove(f"node{call.node} is out of reach: {error}") from error
        finally:
            del self._barrier.moves[save.move]
            shutil.rmtree(save.folder, ignore_errors=True)

    async def _await_end(self, call: Call, save: _Save) -> None:
        """Wait until the file is written, and end the process if that is wished."""
        async with asyncio.timeout(ANSWER_S):
            end = await call.receive()
        if end and wire.get_flag(end, "kill"):
            save.release(Verdict.KILL)

    def _describe(self, save: _Save, caller: Caller) -> Saved:
        """Return what is said of a process that is held, its images made fit for another time."""
        # It may have run another program since.
        check_owner(save.pid, caller)
        about = read_caller(save.pid)
        belongings = Belongings.read(save.pid)
        found = rewrite.list_files(save.folder)
        if more := list(find_losses(save.pid)):
            raise CannotMove("; ".join(more), number=errno.EBUSY)
        led = [fd for fd in found if is_terminal(save.pid, fd)]
        rewrite.free_from_node(save.folder)
        rewrite.find_names(save.pid, save.folder)
        entries = terminals.free(save.folder, led)
        argv = read_bytes(f"/proc/{save.pid}/cmdline").split(b"\0")[:-1]
        threads = sorted(map(int, os.listdir(f"/proc/{save.pid}/task")))
        return Saved(
            save.pid, threads, [word.decode(errors="replace") for word in argv], about.uids,
            about.gids, about.groups, self._places.node, int(time.time()), platform.release(),
            read_processor(), count_pages(save.pid), read_clocks(save.pid), entries, belongings,
        )  # fmt: skip


async def _wait_dumped(save: _Save, holder: Holder) -> None:
    await wait_first([holder.ended.wait(), save.dumped.wait()])
    if not save.dumped.is_set():
        raise CannotMove(criu.read_errors(save.folder))
