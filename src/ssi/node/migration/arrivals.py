"""Processes that come here: restored, held until they are told to go on, and then bodies."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import functools
import logging
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import NodeLost, ProtocolError, SsiError
from ssi.common.nodes import MAX_NODE
from ssi.common.wire import Message
from ssi.node import faults
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.launcher import LEADS, Program
from ssi.node.migration import criu, landing, rewrite, room, transfer
from ssi.node.migration.arrival import GIVEN_UP, Arrival, File
from ssi.node.migration.barrier import Answer, Barrier, Question, Verdict
from ssi.node.migration.clocks import Clocks
from ssi.node.migration.holder import Holder
from ssi.node.migration.locks import Lock, Locks, list_takers
from ssi.node.migration.pagers import Pagers
from ssi.node.migration.standing import Standing
from ssi.node.pids import any_pid
from ssi.node.process.asking import FOREVER_S
from ssi.node.process.bodies import FD_MASK, Body, load_devices
from ssi.node.process.caller import MAX_PID
from ssi.node.process.device import Device
from ssi.node.process.family import Child, Family
from ssi.node.process.ghost import Kind
from ssi.node.process.standins import StandIn
from ssi.node.relay.relays import Relays
from ssi.node.relay.saved import path_of
from ssi.node.tasks import Tasks
from ssi.node.waiting import close_by_thread

logger = logging.getLogger(__name__)

REMEMBERED = 1000


class Arrivals:
    """All of this node."""

    def __init__(
        self, family: Family, device: Device, relays: Relays, barrier: Barrier, pagers: Pagers,
        ics: Ics,
    ) -> None:  # fmt: skip
        self._asking = family.asking
        self._locks = Locks(family.asking, ics)
        self._places = places = family.places
        self._bodies = places.bodies
        self._ghosts = places.ghosts
        self._family = family
        self._device = device
        self._relays = relays
        self._barrier = barrier
        self._pagers = pagers
        self._standing = Standing(places, pagers, self._locks)
        self._all: dict[str, Arrival] = {}
        self._lost: collections.deque[str] = collections.deque(maxlen=REMEMBERED)
        """Moves for which something was given up here, and of which nothing came."""
        self._tasks = Tasks()
        self._ready = asyncio.Event()
        """Those that a daemon before this one had are known."""
        ics.serve("arrive", self._answer_arrive)
        ics.serve("arrive-ready", self._answer_ready)
        ics.serve("arrive-end", self._answer_end)

    @property
    def moves(self) -> set[str]:
        """Those that are under way."""
        return set(self._all)

    async def take_over(self) -> None:
        """Wait for word about those that were ready in the daemon before this one; end the others.

        The bodies have been found.
        """
        room.FOLDER.mkdir(mode=0o700, exist_ok=True)
        lost = []
        for folder in room.FOLDER.iterdir():
            arrival = Arrival.find(folder)
            if arrival is None:
                lost.append(folder)
                continue
            if arrival.is_stranger:
                arrival.body = self._bodies.find_arriving(arrival.ghost)
            arrival.settled.set()
            self._add(arrival)
            self._tasks.spawn(self._await_word(arrival))
        for body in self._bodies.arriving:
            if not any(arrival.body is body for arrival in self._all.values()):
                # Before it may come again.
                await self._end_body(body)
        for folder in lost:
            if (folder / GIVEN_UP).exists():
                self._lost.append(folder.name)
            await self._end_helpers(folder.name)
            shutil.rmtree(folder, ignore_errors=True)
        self._ready.set()

    def _add(self, arrival: Arrival) -> None:
        self._all[arrival.move] = arrival
        self._barrier.moves[arrival.move] = lambda question, number, asker: self._hear(
            arrival, question, number, asker
        )

    async def _await_word(self, arrival: Arrival) -> None:
        """Hear from the node that it comes from what becomes of it, or find out if that is dead."""
        try:
            question = {"move": arrival.move}
            answer = await self._asking.ask(
                arrival.source, "depart-end", question, within_s=FOREVER_S
            )
            goes_on = wire.get_flag(answer, "goes_on")
            if not goes_on:
                arrival.refused.set()
            await arrival.settled.wait()
        except NodeLost:
            await arrival.settled.wait()
            goes_on = await self._is_last(arrival)
        await self._end(arrival, goes_on=goes_on)

    async def _is_last(self, arrival: Arrival) -> bool:
        """Tell whether what came here is the process: where it came from is dead."""
        if arrival.body is None:
            return True
        with contextlib.suppress(NodeLost):
            words = {"id": arrival.ghost}
            answer = await self._asking.ask(arrival.home, "ghost-where", words)
            return wire.get_int(answer, "node", 0, MAX_NODE) == self._places.node
        # So is who would see its death: nothing else is left of it.
        return True

    async def _answer_arrive(self, call: Call) -> Message:
        move = wire.get_text(call.body, "move")
        if not move.isalnum() or len(move) > 32:
            raise SsiError(f"a move called {move!r:.60}")
        await self._ready.wait()
        await criu.check_installed()
        way = _way_of(call)
        lazy = way == criu.Way.LATER
        room.check(
            wire.get_int(call.body, "pages", 0, 2**40), self._pagers.count_missing(), lazy=lazy
        )
        folder = await room.make(move)
        try:
            await criu.learn_kernel()
            async with self._land(call) as connection:
                wishes = await self._receive(call, folder, connection, way)
                arrival = self._begin(move, call.node, wishes, folder)
                if lazy:
                    self._pagers.start(folder, arrival.pid, call.node, connection)
                    arrival.lazy = True
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        # Not by the asker's task: the connection to him may break meanwhile.
        settling = self._tasks.spawn(self._settle(arrival, wishes))
        # It may have nobody to tell.
        settling.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(settling)
        return {}

    async def _settle(self, arrival: Arrival, wishes: Message) -> None:
        """Have it restored and held, and write that down; raises CannotMove."""
        self._tasks.spawn(self._await_word(arrival))
        try:
            faults.hit("arrival-begun")
            clocks = Clocks.load(wire.get_object(wishes, "clocks"))
            rewrite.set_clocks(arrival.folder, clocks.now())
            await self._locks.check(arrival.locks)
            # CRIU looks at it in /proc.
            self._places.arriving.add(arrival.pid)
            await self._places.tell_move(arrival.pid)
            children = [Child.load(one) for one in wire.get_objects(wishes, "children")]
            try:
                away = await self._family.expect(arrival.pid, children, arrival.folder)
            except OSError as error:
                raise criu.CannotMove(error.strerror or "its children have no place") from error
            highest = max(rewrite.find_highest(arrival.folder), *(child.pid for child in away), 0)
            # Its threads and its children may have PIDs of any node.
            with any_pid(self._places.node, highest):
                if ghost := self._ghosts.find(arrival.pid):
                    await self._standing.restore(arrival, wishes, ghost)
                elif arrival.home == self._places.node:
                    raise criu.CannotMove("its ghost has been killed")
                elif not await self._places.stand_ins.make_room(arrival.pid):
                    await self._standing.restore_for_stand_in(arrival)
                else:
                    await self._restore(arrival, wishes)
            arrival.save()
            faults.hit("arrival-ready", arrival.criu_pid)
        except BaseException:
            await self._end(arrival, goes_on=False)
            raise
        finally:
            arrival.settled.set()

    @contextlib.asynccontextmanager
    async def _land(self, call: Call) -> AsyncIterator[socket.socket]:
        """Give the connection of a move; raises CannotMove."""
        try:
            with landing.landing(self._places.node, call.node) as place:
                pid = wire.get_int(call.body, "pid", 1, MAX_PID)
                await call.send({**place.describe(), "takes_place": self._is_placeholder(pid)})
                connection = await place.accept()
        except OSError as error:
            raise self._no_images(error) from error
        with connection:
            yield connection

    def _is_placeholder(self, pid: int) -> bool:
        ghost = self._ghosts.find(pid)
        return ghost is not None and ghost.kind == Kind.PLACEHOLDER

    def _no_images(self, error: OSError) -> criu.CannotMove:
        return criu.CannotMove(f"node{self._places.node} gets no images: {error}")

    async def _receive(
        self, call: Call, folder: Path, connection: socket.socket, way: criu.Way
    ) -> Message:
        """Have images and pages come into a folder; return what is wished with them."""
        try:
            if way == criu.Way.LATER:
                await transfer.alone(connection, transfer.receive_images, folder)
            else:
                own = wire.get_int(call.body, "own", 0, 2**40)
                apart = way == criu.Way.AT_ONCE
                receive = functools.partial(transfer.receive_all, expected=own, apart=apart)
                came = await transfer.alone(connection, receive, folder)
                logger.info(
                    "move %s: %d pages in %.4f s, the first after %.4f s",
                    folder.name, came.pages, came.seconds, came.read,
                )  # fmt: skip
        except OSError as error:
            raise self._no_images(error) from error
        wishes = await call.receive()
        if wishes is None:
            raise ProtocolError("a move without a word what it is")
        return wishes

    def _begin(self, move: str, source: int, wishes: Message, folder: Path) -> Arrival:
        files = {
            wire.get_int(one, "entry", 0, 2**31): File.load(one)
            for one in wire.get_objects(wishes, "files")
        }
        pid = wire.get_int(wishes, "pid", 1, MAX_PID)
        home, ghost = wire.get_int(wishes, "home", 0, MAX_NODE), wire.get_text(wishes, "ghost")
        tty, pinned = wire.get_int(wishes, "tty", 0, 2**32), wire.get_flag(wishes, "pinned")
        arrival = Arrival(move, pid, source, home, ghost, files, folder, tty, pinned)
        arrival.locks = [Lock.load(one) for one in wire.get_objects(wishes, "locks")]
        self._add(arrival)
        return arrival

    # -- to a node where it is a stranger --------------------------------------------------------

    async def _restore(self, arrival: Arrival, wishes: Message) -> None:
        """Have it restored and held; raises CannotMove."""
        arrival.body = body = self._bodies.expect(
            arrival.ghost, arrival.home, arrival.tty, pinned=arrival.pinned
        )
        try:
            program, above = await self._find_place(arrival, body, wishes)
            with criu.opened(arrival.folder) as (fds, numbers):
                await self._bodies.run_program(
                    body, program, above, dict(zip(numbers, fds, strict=True))
                )
            if body.pid != arrival.pid:
                raise criu.CannotMove(f"PID {arrival.pid} is another's on this node")
            await arrival.wait_ready(self._bodies.wait_end(body), self._locks)
        except (OSError, SsiError) as error:
            raise criu.CannotMove(f"it cannot be restored: {error}") from error

    async def _find_place(
        self, arrival: Arrival, body: Body, wishes: Message
    ) -> tuple[Program, StandIn | None]:
        """Return what is to become the process, and below whom."""
        pid, group = arrival.pid, wire.get_int(wishes, "group", 1, MAX_PID)
        parent, session = (wire.get_int(wishes, key, 0, MAX_PID) for key in ("parent", "session"))
        leads = session == pid
        group = LEADS if group == pid else group
        body.devices = load_devices(wishes)
        above = await self._bodies.place(body, parent, parent if leads else session, group)
        if above is None:
            rewrite.lead_session(arrival.folder)
        program = dataclasses.replace(
            arrival.program, session=leads or above is None,
            group=LEADS if above is None else group,
        )  # fmt: skip
        return program, above

    # -- what becomes of it ---------------------------------------------------------------------

    async def _end(self, arrival: Arrival, *, goes_on: bool) -> None:
        """Let it go on, or not; once."""
        if not arrival.goes_on.done():
            # Not by the task of somebody who asks: the connection to him may break meanwhile.
            self._tasks.spawn(self._tell_end(arrival, goes_on=goes_on))
        await arrival.over.wait()

    async def _tell_end(self, arrival: Arrival, *, goes_on: bool) -> None:
        if goes_on:
            # Who wants the move need not wait for the rest, and CRIU takes the processor as soon as
            # it hears that.
            self._tasks.spawn(self._tell_runs(arrival))
            await asyncio.sleep(0)
        if arrival.goes_on.done():
            return
        body = arrival.body
        self._places.arriving.discard(arrival.pid)
        for fd in arrival.kept.values():
            os.close(fd)
        arrival.kept.clear()
        if goes_on and body:
            self._bodies.begin(body)
        arrival.goes_on.set_result(goes_on)
        await self._relays.begin(arrival.move, goes_on=goes_on)
        faults.hit("arrival-ended", arrival.criu_pid)
        # The next daemon must know of it until CRIU has heard.
        if arrival.restorer:
            if not goes_on:
                arrival.restorer.kill()
            await arrival.restorer.wait_end()
        if body and not goes_on:
            await self._end_body(body)
        if not goes_on:
            await self._end_helpers(arrival.move)
        self._family.settle(arrival.pid, goes_on=goes_on)
        if arrival.given_up and not goes_on:
            self._lost.append(arrival.move)
            await self._family.tell_lost(arrival.pid, arrival.source)
        del self._all[arrival.move]
        self._barrier.moves.pop(arrival.move, None)
        shutil.rmtree(arrival.folder, ignore_errors=True)
        arrival.over.set()

    async def _tell_runs(self, arrival: Arrival) -> None:
        with contextlib.suppress(NodeLost):
            await self._asking.tell(arrival.source, "depart-runs", {"move": arrival.move})

    async def _end_helpers(self, move: str) -> None:
        """Have nobody left who worked for a process that will not run here; it has ended."""
        self._pagers.kill(move)
        for pid in await asyncio.to_thread(list_takers, move):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def _end_body(self, body: Body) -> None:
        """Have nothing left of one that will not run here."""
        if body.pid and body.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(body.pid, signal.SIGKILL)
            await self._bodies.wait_end(body)
        await self._bodies.drop(body)

    async def _hear(self, arrival: Arrival, question: Question, number: int, asker: int) -> Answer:
        """Answer the plugin."""
        if question == Question.CRIU and not arrival.restorer and not arrival.goes_on.done():
            self._watch_restorer(arrival, asker)
            faults.hit("arrival-restoring", asker)
            return Answer(Verdict.GO_ON)
        if question == Question.FILE and number in arrival.files and not arrival.goes_on.done():
            return await self._give_file(arrival, number)
        if question == Question.LOCK and not arrival.goes_on.done():
            arrival.takers.append(Holder(number))
            return Answer(Verdict.GO_ON)
        if question == Question.READY:
            arrival.ready.set()
            goes_on = await asyncio.shield(arrival.goes_on)
            return Answer(Verdict.GO_ON if goes_on and await arrival.has_locks() else Verdict.KILL)
        if asker == arrival.pid:
            return await self._standing.hear(arrival, question, number)
        return Answer(Verdict.REFUSED)

    async def _give_file(self, arrival: Arrival, entry: int) -> Answer:
        try:
            return Answer(Verdict.GO_ON, await self._open(arrival, entry))
        except OSError as error:
            # Asked again it would be no better.
            logger.warning("move %s: file %d: %s", arrival.move, entry, error)
            return Answer(Verdict.REFUSED)

    def _watch_restorer(self, arrival: Arrival, pid: int) -> None:
        arrival.restorer = restorer = Holder(pid)

        async def watch() -> None:
            await restorer.ended.wait()
            arrival.criu_gone.set()

        self._tasks.spawn(watch())

    async def _open(self, arrival: Arrival, entry: int) -> int:
        """Return a descriptor for one of the process's."""
        file = arrival.files[entry]
        flags = file.flags & (os.O_ACCMODE | os.O_NONBLOCK)
        saved = path_of(arrival.folder, entry)
        if arrival.stood and file.is_of(arrival.stood) and file.fd in arrival.kept:
            own = arrival.kept[file.fd]
            return await self._relays.bring_home(own, saved, flags) if file.relay else os.dup(own)
        if file.process:
            return await self._device.open(file.process, flags)
        owner = arrival.body
        if not file.node or (owner is None and file.ghost == arrival.ghost):
            handle = FD_MASK  # it leads nowhere: EIO
            opened = await self._device.open(handle, flags)
        else:
            if owner is None or file.ghost != arrival.ghost:
                owner = self._bodies.link(file.ghost, file.node)
            handle = self._bodies.handle_of(owner, file.fd)
            opened = await self._device.open(handle, flags)
            self._bodies.count(handle)
        if not file.relay:
            return opened
        try:
            return await self._relays.add(handle, opened, saved, flags)
        finally:
            await close_by_thread(opened)

    async def _answer_ready(self, call: Call) -> Message:
        """Tell whether a process is restored and held, once that is known, or lost in its place."""
        await self._ready.wait()
        move = wire.get_text(call.body, "move")
        if arrival := self._all.get(move):
            await arrival.settled.wait()
        is_ready = move in self._all and self._all[move].is_saved
        return {"ready": is_ready, "given_up": move in self._lost}

    async def _answer_end(self, call: Call) -> Message:
        """Let it go on, or not."""
        await self._ready.wait()
        if arrival := self._all.get(wire.get_text(call.body, "move")):
            goes_on = wire.get_flag(call.body, "goes_on")
            if not goes_on:
                arrival.refused.set()
            await arrival.settled.wait()
            await self._end(arrival, goes_on=goes_on)
        return {}


def _way_of(call: Call) -> criu.Way:
    return criu.Way(wire.get_int(call.body, "way", 0, len(criu.Way) - 1))
