"""Processes that leave this node."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import secrets
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import NodeLost, SsiError
from ssi.common.nodes import MAX_NODE
from ssi.common.wire import Message
from ssi.node import faults
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics, Stream
from ssi.node.migration import criu, landing, pagers, rewrite, transfer
from ssi.node.migration.barrier import Answer, Barrier, Question, Verdict
from ssi.node.migration.clocks import read_clocks
from ssi.node.migration.criu import CannotMove, Way
from ssi.node.migration.departure import DECIDED, DONE, FOLDER, RECORD, Departure
from ssi.node.migration.files import Files, refuse_descriptors
from ssi.node.migration.holder import (
    STILL_S,
    Fate,
    Holder,
    HolderKilled,
    find_fate,
    spent,
    wait_first,
)
from ssi.node.migration.locks import list_locks
from ssi.node.migration.obstacles import Obstacles, check_right, raise_refusal
from ssi.node.migration.pagers import Pagers, choose_way
from ssi.node.pids import origin_of
from ssi.node.process.bodies import Body
from ssi.node.process.caller import MAX_PID, Caller
from ssi.node.process.family import Family
from ssi.node.process.foreign import Foreign
from ssi.node.process.ghost import PROGRAM, Kind
from ssi.node.process.jobcontrol import parent_of
from ssi.node.processes import read_stat, read_status, reap, start_of
from ssi.node.smallfiles import read_text, write_bytes
from ssi.node.tasks import Tasks
from ssi.node.waiting import wait_until

logger = logging.getLogger(__name__)

TRACED_S = 5.0
REMEMBERED = 1000
TRIES = 3


class Departures:
    """All of this node."""

    def __init__(
        self, foreign: Foreign, family: Family, files: Files, barrier: Barrier,
        obstacles: Obstacles, pagers: Pagers, ics: Ics,
    ) -> None:  # fmt: skip
        self._foreign = foreign
        self._obstacles = obstacles
        self._pagers = pagers
        self._asking = family.asking
        self._places = places = family.places
        self._ghosts = places.ghosts
        self._bodies = places.bodies
        self._stand_ins = places.stand_ins
        self._family = family
        self._files = files
        self._barrier = barrier
        self._ics = ics
        self._moving: set[int] = set()
        self._leaving: dict[int, Departure] = {}
        """Those that go on elsewhere, by the process: there is something left to do here."""
        self._resumed: dict[int, Departure] = {}
        """Those that a daemon before this one has begun, by the process."""
        self._ready = asyncio.Event()
        self._all: dict[str, Departure] = {}
        self._asked: dict[str, asyncio.Task[Message]] = {}
        """Moves that were asked for: who asks again has not had the answer."""
        self._pass_on = foreign.pass_on(self._answer_move)
        self._tasks = Tasks()
        ics.serve("depart-end", self._answer_depart_end)
        ics.serve("depart-runs", self._hear_runs)
        ics.serve("move", self._answer_once)

    @property
    def moves(self) -> set[str]:
        """Those that are under way."""
        return set(self._all)

    async def move(self, pid: int, target: int, caller: Caller, *, whole: bool = False) -> None:
        """Move a process of any node to `target`; raises SsiError with the reason if it stays.

        `whole` has it wait there for all its memory, however much that is.
        """
        once = secrets.token_hex(8)
        words = {
            "pid": pid, "target": target, "caller": caller.dump(), "once": once, "whole": whole,
        }  # fmt: skip
        answer: Message = {}
        for _ in range(TRIES):
            answer = await self._foreign.ask_where(pid, "move", words)
            # It may have left where it was sought, and the daemon there died before it said so.
            if answer["error"] != errno.ESRCH or await self._foreign.find(pid) is None:
                break
        raise_refusal(pid, answer)

    async def _answer_once(self, call: Call) -> Message:
        """Move it once, whatever becomes of the connection to the asker."""
        once = wire.get_text(call.body, "once")
        if once not in self._asked:
            self._asked[once] = asyncio.ensure_future(self._answer_passed(call))
            while len(self._asked) > REMEMBERED:
                self._asked.pop(next(iter(self._asked)))
        return await asyncio.shield(self._asked[once])

    async def _answer_passed(self, call: Call) -> Message:
        return await self._pass_on(call)

    async def _answer_move(self, call: Call) -> Message:
        pid = wire.get_int(call.body, "pid", 1, MAX_PID)
        target = wire.get_int(call.body, "target", 1, MAX_NODE)
        caller = Caller.load(wire.get_object(call.body, "caller"))
        try:
            await self._ready.wait()
            check_right(pid, caller)
            await self._move_alone(pid, target, whole=wire.get_flag(call.body, "whole"))
        except ProcessLookupError:
            return {"error": errno.ESRCH}
        except FileNotFoundError:
            # It was killed while we looked at it.
            if Path(f"/proc/{pid}").exists():
                raise
            return {"error": errno.ESRCH}
        except SsiError as error:
            logger.info("process %d stays: %s", pid, error)
            return {"error": _number_of(error), "reason": str(error)}
        return {"error": 0}

    async def _move_alone(self, pid: int, target: int, *, whole: bool) -> None:
        """Move a process unless another move of it is under way."""
        if resumed := self._resumed.get(pid):
            await resumed.ended.wait()
            if resumed.goes_on and resumed.target == target:
                return
        if leaving := self._leaving.get(pid):
            # It has come back since.
            await leaving.ended.wait()
        if pid in self._moving:
            raise CannotMove("it is being moved already", number=errno.EALREADY)
        self._moving.add(pid)
        try:
            await self._move(pid, target, whole=whole)
        finally:
            self._moving.discard(pid)

    async def _move(self, pid: int, target: int, *, whole: bool) -> None:
        if target == self._places.node:
            return
        departure = await self._prepare(pid, target)
        departure.way = choose_way(pid, whole=whole)
        moving = self._tasks.spawn(self._carry(departure))
        await wait_first([asyncio.shield(moving), departure.runs.wait()])
        if not moving.done():
            # What else is to be done nobody has to wait for.
            self._leaving[pid] = departure
            return
        try:
            await moving
        except CannotMove as error:
            if find_fate(pid, departure.begun) != Fate.GONE:
                raise
            # What CRIU says of one that has ended meanwhile helps nobody.
            raise ProcessLookupError(pid) from error

    async def _carry(self, departure: Departure) -> None:
        """Move it; raises CannotMove, ProcessLookupError if it stays."""
        pid, target = departure.pid, departure.target
        self._add(departure)
        logger.info("move %s: process %d to node%d", departure.move, pid, target)
        # Meanwhile the other node makes ready for it.
        looking = asyncio.ensure_future(self._look(departure))
        looking.add_done_callback(lambda task: task.cancelled() or task.exception())
        # And CRIU is loaded.
        criu_pid = criu.dump(departure.move, pid, departure.folder, None, departure.way)
        departure.holder = Holder(criu_pid)
        try:
            async with self._reach(departure) as (stream, connection):
                departure.mark("reached")
                await looking
                await self._carry_out(departure, stream, connection)
            logger.info("move %s: seconds: %s", departure.move, departure.tell_times())
        except SsiError:
            # What keeps it says more than a node that cannot be reached.
            await looking
            raise
        finally:
            looking.cancel()
            if not departure.line.done():
                departure.line.set_result(None)
            await departure.holder.wait_end()
            reap(criu_pid)
            self._end(departure)
            if self._leaving.get(pid) is departure:
                del self._leaving[pid]
            await self._places.tell_move(pid)

    async def _prepare(self, pid: int, target: int) -> Departure:
        """Return what is to be done unless something keeps the process; raises CannotMove."""
        if not self._asking.is_alive(target):
            raise CannotMove(f"node{target} is not up", number=errno.EHOSTDOWN)
        departure = Departure(pid, target, self._bodies.find(pid), begun=_begin_of(pid))
        departure.mark("begun")
        await self._pagers.wait(pid)
        # A move that a daemon before this one has begun may just be given up.
        await wait_until(lambda: not find_tracer(pid), within_s=TRACED_S)
        await criu.check_installed()
        await criu.learn_kernel()
        departure.folder.mkdir(mode=0o700, parents=True)
        departure.mark("prepared")
        return departure

    async def _look(self, departure: Departure) -> None:
        """Look for what keeps the process; raises CannotMove, ProcessLookupError."""
        if found := await self._obstacles.find(departure.pid):
            raise CannotMove("; ".join(found), number=errno.EBUSY)
        if departure.goes_home and read_status(departure.pid).get("NoNewPrivs") == ["1"]:
            # What becomes of the ghost begins as root's program.
            raise CannotMove("it may get no new privileges, and so cannot come home")
        departure.mark("looked at")

    async def _carry_out(
        self, departure: Departure, stream: Stream, connection: socket.socket
    ) -> None:
        """Have it dumped, and restored on its new node; raises CannotMove."""
        assert departure.holder
        criu_pid = departure.holder.pid
        departure.line.set_result(connection)
        try:
            faults.hit("departure-begun", criu_pid)
            await _wait_dumped(departure, stream)
            departure.mark("dumped")
            faults.hit("departure-dumped", criu_pid)
            await self._hand_over(departure, stream, connection)
            departure.mark("followed")
        finally:
            if not departure.answer.done():
                departure.answer.set_result(Answer(Verdict.GO_ON))
            if departure.way == Way.LATER or not departure.dumped.is_set():
                # It may wait for who takes its pages, as may who has those that follow.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            await departure.holder.wait_end()

    def _add(self, departure: Departure) -> None:
        self._all[departure.move] = departure
        self._barrier.moves[departure.move] = lambda question, number, _: self._hear(
            departure, question, number
        )

    def _end(self, departure: Departure) -> None:
        del self._all[departure.move]
        del self._barrier.moves[departure.move]
        self._tasks.spawn(self._files.settle(departure.move, left=departure.goes_on))
        shutil.rmtree(departure.folder, ignore_errors=True)
        departure.ended.set()

    @contextlib.asynccontextmanager
    async def _reach(self, departure: Departure) -> AsyncIterator[tuple[Stream, socket.socket]]:
        """Have its new node expect it: give a call to say the rest, and a connection for bytes."""
        words = {
            "move": departure.move, "pid": departure.pid, "way": departure.way,
            "pages": _count_pages(departure.pid), "own": pagers.count_own(departure.pid),
        }  # fmt: skip
        async with self._ics.call(departure.target, "arrive", words) as stream:
            place = await stream.receive()
            if place is None:
                await stream.answer()
                raise CannotMove(f"node{departure.target} does not expect it")
            departure.takes_place = wire.get_flag(place, "takes_place")
            try:
                way = await landing.connect(self._places.node, departure.target, place)
            except OSError as error:
                raise CannotMove(f"node{departure.target} is out of reach: {error}") from error
            with way:
                yield stream, way

    async def _hand_over(
        self, departure: Departure, stream: Stream, connection: socket.socket
    ) -> None:
        """Have it restored on its new node, and go on there; raises CannotMove."""
        body = departure.body
        departure.children = self._family.list_children(departure.pid)
        departure.ghost = body.id if body else departure.keeper
        found = await self._files.sort(departure.pid, body, departure.folder, departure.keeper)
        departure.keeps, departure.halves = bool(found.kept), found.halves
        there = [body] if body and departure.goes_home else list(found.owners.values())
        owner = next((one for one in there if one.home == departure.target), None)
        left = await self._files.list_left(departure.pid, owner) if owner else []
        departure.owners = [(owner.home, owner.id) for owner in found.owners.values()]
        rewrite.free_from_node(departure.folder)
        if departure.way == Way.LATER:
            pagers.add_following(departure.folder, departure.pid)
        await asyncio.to_thread(rewrite.find_names, departure.pid, departure.folder)
        departure.verdict = self._choose_verdict(departure, found.kept)
        wishes = {
            "files": found.files, **self._describe(departure),
            "ghost": departure.ghost, "home": body.home if body else self._places.node,
            "pinned": bool(body and body.pinned), "clocks": read_clocks(departure.pid).dump(),
            "children": [child.dump() for child in departure.children],
            "locks": [lock.dump() for lock in list_locks(departure.pid)], "left": left,
        }  # fmt: skip
        write_bytes(departure.folder / RECORD, wire.encode(departure.dump()))
        try:
            departure.mark("sorted")
            await self._send(departure, connection)
            if departure.way == Way.LATER:
                # From now on it is a matter between who has the pages and who fetches them.
                connection.close()
            faults.hit("departure-sent", self._criu_of(departure))
            if departure.goes_home or departure.takes_place:
                await self._hold(departure)
            elif departure.holder:
                departure.holder.check()
            await stream.send(wishes)
            departure.mark("sent")
            await self._await_ready(departure, stream)
            departure.mark("restored")
        except SsiError:
            await self._look_after_ghost(departure)
            raise
        faults.hit("departure-ready", self._criu_of(departure))
        await self._decide(departure)
        faults.hit("departure-committed", self._criu_of(departure))
        await self._commit(departure)

    @staticmethod
    def _criu_of(departure: Departure) -> int:
        return departure.holder.pid if departure.holder else 0

    async def _hold(self, departure: Departure) -> None:
        """Have it end if CRIU is killed from now on: what stands for it is about to end.

        Raises CannotMove.
        """
        assert departure.holder
        departure.hold.set()
        await wait_first([departure.held.wait(), departure.holder.ended.wait()])
        fate = find_fate(departure.pid, departure.begun)
        if not departure.held.is_set() and fate != Fate.GONE:
            raise HolderKilled

    async def _await_ready(self, departure: Departure, stream: Stream) -> None:
        """Wait until it is restored and held there; raises SsiError if it is not."""
        assert departure.holder
        ready = asyncio.ensure_future(self._hear_ready(departure, stream))
        waits: list[Awaitable[object]] = [asyncio.shield(ready)]
        if not departure.held.is_set():
            waits.append(departure.holder.ended.wait())
        # Its new node sees to it that this has an end.
        await wait_first(waits)
        if not ready.done():
            ready.cancel()
            raise HolderKilled
        await ready

    async def _hear_ready(self, departure: Departure, stream: Stream) -> None:
        try:
            await stream.answer()
        except NodeLost:
            # If only its daemon was killed, or the connection, it may become ready all the same.
            if not await self._is_ready(departure):
                raise

    async def _look_after_ghost(self, departure: Departure) -> None:
        """It stays; unless what stands for it has ended of that, as its parent has seen."""
        body = departure.body
        if body and departure.goes_home:
            is_lost = not await self._has_ghost(body)
        else:
            is_lost = departure.takes_place and await self._ask_target(departure, "given_up")
        if is_lost:
            if body:
                body.left = departure.goes_home
            departure.answer.set_result(Answer(Verdict.KILL))

    async def _decide(self, departure: Departure) -> None:
        """It leaves, as it is ready there; raises CannotMove if it has been killed."""
        try:
            if departure.body:
                await self._hold(departure)
                await self._tell_home(departure, departure.body)
            # Once its ghost has been told there is no way back.
            if (departure.goes_home or not departure.body) and not self._asking.is_alive(
                departure.target
            ):
                raise NodeLost(f"node{departure.target} was lost")
            if departure.verdict and departure.verdict.verdict == Verdict.GHOST:
                self._ghosts.adopt(
                    departure.pid, departure.keeper, departure.target, kind=departure.kind,
                    parent=parent_of(departure.pid), keeps=departure.keeps,
                    below=self._below(departure),
                )  # fmt: skip
        except SsiError:
            await self._tell_target(departure, goes_on=False)
            raise
        await self._tell_keepers(departure, departure.target)
        await self._family.tell_moved(departure.pid, departure.children, departure.target)
        (departure.folder / DECIDED).touch()

    async def _commit(self, departure: Departure) -> None:
        """It has left: have what is here follow, then have it go on there."""
        body = departure.body
        if body:
            body.left = True
        assert departure.verdict
        departure.answer.set_result(departure.verdict)
        failure = await self._await_done(departure)
        if failure:
            await self._take_back(departure)
            raise CannotMove(f"it could not be let go: {os.strerror(-failure)}")
        refuse_descriptors(departure.pid, departure.halves)
        if body and departure.verdict.verdict == Verdict.KILL:
            await body.gone.wait()
        elif body:
            self._bodies.leave_behind(body)
        self._family.leave(departure.pid)
        self._family.follow(departure.pid, departure.children)
        faults.hit("departure-done", self._criu_of(departure))
        await self._tell_target(departure, goes_on=True)

    async def _await_done(self, departure: Departure) -> int:
        """Return 0 when nothing but a ghost is left of it here, or a negative errno."""
        assert departure.holder
        await wait_first([asyncio.shield(departure.done), departure.holder.ended.wait()])
        if departure.done.done() and not (departure.body and departure.done.result()):
            return departure.done.result()
        fate = find_fate(departure.pid, departure.begun)
        logger.warning("move %s: CRIU has failed, the process %s", departure.move, fate.value)
        if departure.body:
            # Its ghost has been told: it goes on there, whatever is left here.
            if fate not in {Fate.GONE, Fate.GHOST}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(departure.pid, signal.SIGKILL)
            return 0
        if fate == Fate.GONE:
            return -errno.ESRCH
        return 0 if fate == Fate.GHOST else -errno.ECANCELED

    async def _take_back(self, departure: Departure) -> None:
        """It stays although that was decided otherwise: CRIU has not done it."""
        (departure.folder / DECIDED).unlink(missing_ok=True)
        self._ghosts.disown(departure.pid)
        node = self._places.node
        await self._tell_keepers(departure, node)
        await self._family.tell_moved(departure.pid, departure.children, node)
        await self._tell_target(departure, goes_on=False)

    async def _tell_target(self, departure: Departure, *, goes_on: bool) -> None:
        departure.goes_on = goes_on
        with contextlib.suppress(NodeLost):
            end = {"move": departure.move, "goes_on": goes_on}
            await self._asking.ask(departure.target, "arrive-end", end)

    async def _tell_home(self, departure: Departure, body: Body) -> None:
        """Have the ghost know where its body is about to be; raises CannotMove if it is gone."""
        if departure.goes_home:
            return
        with contextlib.suppress(NodeLost):
            if not await self._tell_keeper(departure, body.home, body.id, departure.target):
                raise CannotMove("it has been killed, or where it was to go")

    async def _tell_keeper(self, departure: Departure, node: int, key: str, target: int) -> bool:
        """Have what keeps descriptors know who is going to use them; return whether it is there."""
        owner = self._bodies.find_by_ghost(key)
        left = await self._files.list_left(departure.pid, owner) if owner else []
        words = {"id": key, "node": target, "fds": left}
        return wire.get_flag(await self._asking.ask(node, "ghost-moved", words), "moved")

    async def _tell_keepers(self, departure: Departure, target: int) -> None:
        for node, key in departure.owners:
            with contextlib.suppress(NodeLost):
                await self._tell_keeper(departure, node, key, target)

    async def _has_ghost(self, body: Body) -> bool:
        """Tell whether the body's ghost lives, as far as can be known."""
        with contextlib.suppress(NodeLost):
            answer = await self._asking.ask(body.home, "ghost-where", {"id": body.id})
            return wire.get_int(answer, "node", 0, MAX_NODE) != 0
        return True

    def _choose_verdict(self, departure: Departure, kept: Sequence[int]) -> Answer:
        """Return what becomes of the process here."""
        if departure.body is None:
            return self._render_ghost(departure, kept)
        if self._has_parent_here(departure):
            departure.kind = Kind.PLACEHOLDER
        elif kept or any(child.node == self._places.node for child in departure.children):
            departure.kind = Kind.REMNANT
        else:
            return Answer(Verdict.KILL)
        return self._render_ghost(departure, kept)

    @staticmethod
    def _below(departure: Departure) -> int:
        """Return the node that tells its parent here how it fares, if that is another one."""
        body = departure.body
        return body.home if body and departure.kind == Kind.PLACEHOLDER else 0

    def _has_parent_here(self, departure: Departure) -> bool:
        """Tell whether the parent of a body is neither a stand-in nor gone."""
        parent = parent_of(departure.pid)
        return bool(origin_of(parent)) and not self._places.is_placeholder(parent)

    def _render_ghost(self, departure: Departure, kept: Sequence[int]) -> Answer:
        """Return what makes a ghost of the process."""
        argv = [Path(PROGRAM).name, str(departure.target), "its-command"]
        had = rewrite.list_pending(departure.folder)
        lists = (",".join(map(str, numbers)) for numbers in (sorted(kept), had))
        return Answer(Verdict.GHOST, argv=argv, variables={"SSI_KEPT": ";".join(lists)})

    async def take_over(self) -> None:
        """Finish what the daemon before this one has begun; what is not ready there stays here."""
        FOLDER.mkdir(mode=0o700, exist_ok=True)
        for folder in FOLDER.iterdir():
            try:
                saved = json.loads(read_text(folder / RECORD))
            except (OSError, ValueError):
                self._tasks.spawn(_remove(folder))
                continue
            body = None if saved["at_home"] else self._bodies.find_by_ghost(saved["ghost"])
            departure = Departure(saved["pid"], saved["target"], body, move=folder.name)
            departure.kind, departure.keeper = Kind(saved["kind"]), saved["keeper"]
            departure.keeps, departure.halves = saved["keeps"], saved["halves"]
            departure.owners = [(node, key) for node, key in saved["owners"]]
            departure.children = self._family.list_children(departure.pid)
            departure.begun = saved["begun"]
            departure.holder = Holder.find(*saved["criu"])
            departure.takes_place = saved["takes_place"]
            departure.ghost = saved["ghost"]
            verdict = Verdict.KILL if saved["kill"] else Verdict.GHOST
            departure.verdict = Answer(verdict, argv=saved["argv"], variables=saved["variables"])
            if (folder / DONE).exists():
                departure.done.set_result(0)
            self._add(departure)
            self._resumed[departure.pid] = departure
            self._tasks.spawn(self._finish(departure))
        self._ready.set()

    async def _finish(self, departure: Departure) -> None:
        try:
            if not (departure.folder / DECIDED).exists():
                if not await self._is_ready(departure):
                    await self._look_after_ghost(departure)
                    raise CannotMove("it was not ready yet")
                self._check_held(departure)
                await self._decide(departure)
            await self._commit(departure)
        except SsiError as error:
            logger.warning("move %s: %s", departure.move, error)
        finally:
            if not departure.answer.done():
                departure.answer.set_result(Answer(Verdict.GO_ON))
            self._end(departure)
            del self._resumed[departure.pid]

    @staticmethod
    def _check_held(departure: Departure) -> None:
        """Raise CannotMove if it was let go while there was no daemon."""
        assert departure.holder
        assert departure.verdict
        if departure.verdict.verdict == Verdict.KILL and not departure.body:
            raise CannotMove("it has ended")
        if departure.holder.ended.is_set() and not departure.body:
            raise HolderKilled

    async def _is_ready(self, departure: Departure) -> bool:
        """Tell whether it is restored and held where it is to go."""
        return await self._ask_target(departure, "ready")

    async def _ask_target(self, departure: Departure, flag: str) -> bool:
        try:
            words = {"move": departure.move}
            answer = await self._asking.ask(departure.target, "arrive-ready", words)
        except NodeLost:
            return False
        return wire.get_flag(answer, flag)

    async def _answer_depart_end(self, call: Call) -> Message:
        """Tell whether a process goes on where it has come to, once that is known."""
        await self._ready.wait()
        departure = self._all.get(wire.get_text(call.body, "move"))
        if departure:
            await departure.ended.wait()
        return {"goes_on": bool(departure and departure.goes_on)}

    async def _hear_runs(self, call: Call) -> Message:
        """Take note that a process goes on where it has come to."""
        departure = self._all.get(wire.get_text(call.body, "move"))
        if departure and departure.goes_on:
            await self._places.tell_move(departure.pid)
            departure.runs.set()
        return {}

    def _describe(self, departure: Departure) -> Message:
        fields = read_stat(departure.pid)
        parent, group, session, tty = (int(fields[index]) for index in (1, 2, 3, 4))
        if departure.body:
            tty = departure.body.tty
            visitor = parent not in self._stand_ins or parent in self._stand_ins.visitors
            if visitor and departure.kind != Kind.PLACEHOLDER:
                parent = 0
        return {
            "pid": departure.pid, "parent": parent, "group": group, "session": session, "tty": tty,
            "devices": self._stand_ins.devices_of(departure.pid),
        }  # fmt: skip

    async def _send(self, departure: Departure, connection: socket.socket) -> None:
        try:
            await transfer.alone(connection, transfer.send_images, departure.folder)
        except OSError as error:
            raise CannotMove(f"node{departure.target} is out of reach: {error}") from error

    async def _hear(self, departure: Departure, question: Question, number: int) -> Answer:
        if question == Question.BEGIN:
            line = await asyncio.shield(departure.line)
            return Answer(Verdict.GO_ON, os.dup(line.fileno())) if line else Answer(Verdict.KILL)
        if question == Question.DUMPED:
            if number > 0 and not departure.dumped.is_set():
                self._pagers.kept.add(number)
            departure.failure = max(-number, 0)
            departure.dumped.set()
            await wait_first([asyncio.shield(departure.answer), departure.hold.wait()])
            if not departure.answer.done():
                return Answer(Verdict.HOLD)
        if question == Question.HELD:
            departure.held.set()
        if question in {Question.DUMPED, Question.HELD}:
            return await asyncio.shield(departure.answer)
        if question == Question.DONE and faults.hit("departure-followed", self._criu_of(departure)):
            return Answer(Verdict.GO_ON)
        if question == Question.DONE and not departure.done.done():
            if number == 0:
                (departure.folder / DONE).touch()
            departure.done.set_result(number)
        return Answer(Verdict.GO_ON)


async def _remove(folder: Path) -> None:
    """Remove images that CRIU may still be writing: it hears in the end that nobody wants them."""

    def is_removed() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    await wait_until(is_removed, within_s=STILL_S)


async def _wait_dumped(departure: Departure, stream: Stream) -> None:
    """Wait until its images are written; raises SsiError if that fails, or nobody wants them."""
    holder = departure.holder
    assert holder
    refused = asyncio.ensure_future(stream.answer())
    progress = await wait_first(
        [holder.ended.wait(), departure.dumped.wait(), asyncio.shield(refused)],
        lambda: spent(holder.pid),
    )
    if refused.done():
        await refused
        raise CannotMove(f"node{departure.target} does not expect it")
    refused.cancel()
    if not progress:
        raise CannotMove("CRIU makes no progress")
    if not departure.dumped.is_set():
        raise CannotMove(criu.read_errors(departure.folder))
    if departure.failure:
        reason = os.strerror(departure.failure)
        raise CannotMove(f"its memory cannot be sent: {reason}")


def _number_of(error: SsiError) -> int:
    if isinstance(error, CannotMove):
        return error.number
    return errno.EHOSTDOWN if isinstance(error, NodeLost) else errno.EIO


def _begin_of(pid: int) -> int:
    try:
        return start_of(pid)
    except OSError as error:
        raise ProcessLookupError(pid) from error


def find_tracer(pid: int) -> int:
    """Return who traces a process, 0 if nobody does; raises ProcessLookupError."""
    return int(read_status(pid)["TracerPid"][0])


def _count_pages(pid: int) -> int:
    """Return how much of its memory is there; raises ProcessLookupError."""
    try:
        return int(read_text(f"/proc/{pid}/statm").split()[1])
    except FileNotFoundError as error:
        raise ProcessLookupError from error
