"""System calls of this node's processes that mean objects of other nodes: done where those are."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import json
import struct
from collections.abc import Callable
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import NodeLost, SsiError
from ssi.common.wire import Message
from ssi.node.ipc.indexes import Indexes
from ssi.node.ipc.keeper import CONTROLS, GETS, LOST, ROOT, Call, Kind, Outcome, Wish
from ssi.node.ipc.objects import CREAT, RMID, SET, SETALL, SETVAL, STAT, Objects
from ssi.node.ipc.places import Places
from ssi.node.ipc.segments import Segments
from ssi.node.ipc.snapshots import FOLDER, Snapshots
from ssi.node.process.asking import FOREVER_S, Asking
from ssi.node.process.caller import read_caller, read_memory
from ssi.node.process.ends import wait_status
from ssi.node.process.listener import GO_ON, HeldCall, Judge, Listener, Verdict, as_int
from ssi.node.processes import start_of
from ssi.node.state.ipc import Home
from ssi.node.tasks import Tasks

# x86-64
SHMGET, SHMAT, SHMCTL = 29, 30, 31
SEMGET, SEMOP, SEMCTL, SEMTIMEDOP = 64, 65, 66, 220
MSGGET, MSGSND, MSGRCV, MSGCTL = 68, 69, 70, 71

_SEMBUF = struct.Struct("=Hhh")
_TIMESPEC = struct.Struct("=qq")
_SEM_NSEMS = struct.Struct("=80xQ")
UNDO = 0o10000
MOST_OPERATIONS = 500
MOST_BYTES = 32 * 1024
MOST_SEMAPHORES = 16000
MOST_MEMORY = 2**63 - 1

GETVAL, GETALL, GETPID, GETNCNT, GETZCNT = 12, 13, 11, 14, 15
COMMANDS = {
    Kind.SEMAPHORES: {
        RMID, SET, STAT, GETVAL, GETALL, GETPID, GETNCNT, GETZCNT, SETVAL, SETALL,
    },
    Kind.QUEUE: {RMID, SET, STAT},
    Kind.MEMORY: {RMID, SET, STAT},
}  # fmt: skip
LIMITS = 3
"""IPC_INFO: what it says is the same on every node."""

COUNTS = {Kind.SEMAPHORES: 19, Kind.QUEUE: 12, Kind.MEMORY: 14}
"""SEM_INFO and so on."""

BY_INDEX = {Kind.SEMAPHORES: 18, Kind.QUEUE: 11, Kind.MEMORY: 13}
"""SEM_STAT and so on."""

BY_INDEX_ANY = {Kind.SEMAPHORES: 20, Kind.QUEUE: 13, Kind.MEMORY: 15}
"""SEM_STAT_ANY and so on, of what one may not read either."""

LOCKING = {11, 12}
"""SHM_LOCK and SHM_UNLOCK: the kernel says who may, and does nothing where nodes share."""

SIZES = {Kind.SEMAPHORES: 104, Kind.QUEUE: 120, Kind.MEMORY: 112}
"""Of struct semid_ds and so on."""

RESTARTS = 514
"""ERESTARTNOHAND: the call begins again unless a handler is called; only for who has a signal."""

RESTARTS_ALWAYS = 513
"""ERESTARTNOINTR: behind the handler, too."""

FIRST = 1 << 63
"""Flipped in the number of what is asked before the call proper."""

UNDOS = FOLDER / "undo"
SIGNED = 1 << 64


class Calls:
    """Judges them."""

    def __init__(
        self, places: Places, objects: Objects, segments: Segments, snapshots: Snapshots,
        indexes: Indexes, asking: Asking, listener: Listener,
    ) -> None:  # fmt: skip
        self._places = places
        self._objects = objects
        self._segments = segments
        self._snapshots = snapshots
        self._indexes = indexes
        self._asking = asking
        self._listener = listener
        self._tasks = Tasks()
        self._undoing: set[int] = set()
        """Processes that use SEM_UNDO on other nodes."""

    def serve(self, judges: dict[int, Judge]) -> None:
        """Judge them from now on."""
        for kind, number in zip(Kind, (SEMGET, MSGGET, SHMGET), strict=True):
            judges[number] = _ours(self._getting(kind))
        for kind, number in zip(Kind, (SEMCTL, MSGCTL, SHMCTL), strict=True):
            judges[number] = _ours(self._controlling(kind))
        judges[SEMOP] = judges[SEMTIMEDOP] = _ours(self._semop)
        judges[MSGSND] = _ours(self._msgsnd)
        judges[MSGRCV] = _ours(self._msgrcv)
        judges[SHMAT] = _ours(self._attach)

    # -- having it done --------------------------------------------------------------------------

    async def _do(self, call: HeldCall, kind: Kind, wish: Wish, number: int = 0) -> Outcome:
        """Have it done where the object is; if that node dies, where it is made anew."""
        number = number or call.id
        seen = False
        while True:
            home = self._places.find(kind, wish.object) if wish.object >= 0 else None
            if home is None:
                return LOST if seen else Outcome(-errno.EINVAL)
            seen = True
            words = {"wish": wish.dump(), "number": number, "boot": home.boot}
            if self._places.is_alive(home):
                with contextlib.suppress(NodeLost):
                    answer = await self._ask(call, home.node, number, words)
                    if not wire.get_flag(answer, "lost"):
                        outcome = Outcome.load(answer)
                        if outcome.snapshot:
                            self._snapshots.keep(home.boot, outcome.snapshot)
                        return outcome
            if self._listener.is_signalled(call):
                return Outcome(-errno.EINTR)
            await self._places.wait_change()

    async def _ask(self, call: HeldCall, node: int, number: int, words: Message) -> Message:
        """Ask, and have it end soon if the caller gets a signal."""
        loop = asyncio.get_running_loop()
        asking = loop.create_task(self._asking.ask(node, "ipc-do", words, within_s=FOREVER_S))
        signal = loop.create_task(self._listener.wait_signal(call))
        try:
            await asyncio.wait((asking, signal), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                with contextlib.suppress(SsiError):
                    await self._asking.ask(node, "ipc-cancel", {"number": number})
            return await asking
        finally:
            signal.cancel()
            asking.cancel()

    def _settle(self, kind: Kind, identifier: int, number: int) -> Callable[[], object]:
        """Return what tells the node of an object that the caller has the answer."""

        async def tell() -> None:
            home = self._places.find(kind, identifier)
            if home and self._places.is_alive(home):
                with contextlib.suppress(SsiError):
                    await self._asking.tell(home.node, "ipc-done", {"number": number})

        return lambda: self._tasks.spawn(tell())

    async def _verdict(self, call: HeldCall, kind: Kind, wish: Wish, restarts: int) -> Verdict:
        """Have it done; `restarts`: the error if it was interrupted."""
        outcome = await self._do(call, kind, wish)
        settled = self._settle(kind, wish.object, call.id)
        if outcome.result == -errno.EINTR and self._listener.is_signalled(call):
            return Verdict(error=restarts, settled=settled)
        return dataclasses.replace(_read(outcome), settled=settled)

    # -- keys ------------------------------------------------------------------------------------

    def _getting(self, kind: Kind) -> Judge:
        async def get(call: HeldCall) -> Verdict:
            key, flags = call.int_at(0), call.int_at(1 if kind is Kind.QUEUE else 2)
            size = 0
            if kind is Kind.SEMAPHORES:
                size = call.int_at(1)
            elif kind is Kind.MEMORY:
                size = min(call.arguments[1], MOST_MEMORY)
            caller = read_caller(call.thread)
            wish = Wish(GETS[kind], 0, caller, (key, size, flags))
            return await self._get(call, kind, wish)

        return get

    async def _get(self, call: HeldCall, kind: Kind, wish: Wish) -> Verdict:
        key, _, flags = wish.words
        while not self._listener.is_signalled(call):
            home = self._places.find_key(kind, key)
            if home is None:
                if not flags & CREAT:
                    return Verdict(error=errno.ENOENT)
                if not await self._places.claim(kind, key):
                    return Verdict(error=errno.ENOSPC)
                continue
            if home == self._places.own:
                if self._objects.let_make(kind, key, wish.caller.pid):
                    return GO_ON
            elif self._places.is_alive(home) and (
                verdict := await self._get_there(call, home, kind, wish)
            ):
                return verdict
            await self._places.wait_change()
        return Verdict(error=RESTARTS_ALWAYS)

    async def _get_there(
        self, call: HeldCall, home: Home, kind: Kind, wish: Wish
    ) -> Verdict | None:
        """Return what the home of a key says; None if it is not that any more."""
        words = {"wish": wish.dump(), "number": call.id, "boot": home.boot}
        try:
            answer = await self._asking.ask(home.node, "ipc-get", words)
        except NodeLost:
            return None
        if wire.get_flag(answer, "again"):
            return None
        outcome = Outcome.load(answer)
        if outcome.snapshot:
            self._snapshots.keep(home.boot, outcome.snapshot)
        settled = self._settle(kind, outcome.result, call.id)
        return dataclasses.replace(_read(outcome), settled=settled)

    # -- memory ----------------------------------------------------------------------------------

    async def _attach(self, call: HeldCall) -> Verdict:
        """Have it here, too; then the kernel goes on with it."""
        identifier, caller = call.int_at(0), read_caller(call.thread)
        while not self._listener.is_signalled(call):
            home = self._places.find(Kind.MEMORY, identifier) if identifier >= 0 else None
            if home is None:
                return Verdict(error=errno.EINVAL)
            if home == self._places.own:
                return GO_ON
            if self._places.is_alive(home):
                with contextlib.suppress(NodeLost):
                    error = await self._segments.bring(home, identifier, caller)
                    if error is not None:
                        return Verdict(error=error) if error else GO_ON
            await self._places.wait_change()
        return Verdict(error=RESTARTS_ALWAYS)

    def _is_local(self, kind: Kind, identifier: int, command: int) -> bool:
        """Tell whether it is about memory that only this node has; a removal is everybody's."""
        if kind is not Kind.MEMORY or command not in {SET, STAT} or identifier < 0:
            return False
        home = self._places.find(kind, identifier)
        return home == self._places.own and not self._segments.is_shared(identifier)

    # -- queues ----------------------------------------------------------------------------------

    async def _msgsnd(self, call: HeldCall) -> Verdict:
        identifier, size, flags = call.int_at(0), call.arguments[2], call.int_at(3)
        if size > MOST_BYTES:
            return Verdict(error=errno.EINVAL)
        message = read_memory(call.thread, call.arguments[1], 8 + size)
        words = (int.from_bytes(message[:8], "little", signed=True), flags, 0)
        wish = Wish(Call.MSGSND, identifier, read_caller(call.thread), words, message[8:])
        return await self._verdict(call, Kind.QUEUE, wish, RESTARTS)

    async def _msgrcv(self, call: HeldCall) -> Verdict:
        size, flags = call.arguments[2], call.int_at(4)
        kind = call.arguments[3] - (SIGNED if call.arguments[3] >= SIGNED >> 1 else 0)
        if size >= SIGNED >> 1:
            return Verdict(error=errno.EINVAL)
        wish = Wish(
            Call.MSGRCV, call.int_at(0), read_caller(call.thread),
            (min(size, MOST_BYTES), kind, flags),
        )  # fmt: skip
        verdict = await self._verdict(call, Kind.QUEUE, wish, RESTARTS)
        if verdict.data:
            return dataclasses.replace(verdict, written=(call.arguments[1], verdict.data))
        return verdict

    # -- semaphores ------------------------------------------------------------------------------

    async def _semop(self, call: HeldCall) -> Verdict:
        identifier, address, count = call.int_at(0), call.arguments[1], call.arguments[2]
        count &= 0xFFFFFFFF
        if count < 1:
            return Verdict(error=errno.EINVAL)
        if count > MOST_OPERATIONS:
            return Verdict(error=errno.E2BIG)
        data = read_memory(call.thread, address, count * _SEMBUF.size)
        limit_ns = -1
        if call.number == SEMTIMEDOP and call.arguments[3]:
            spec = read_memory(call.thread, call.arguments[3], _TIMESPEC.size)
            seconds, rest = _TIMESPEC.unpack(spec)
            if seconds < 0 or not 0 <= rest < 10**9:
                return Verdict(error=errno.EINVAL)
            limit_ns = min(seconds * 10**9 + rest, 2**62)
        caller = read_caller(call.thread)
        if any(flags & UNDO for _, _, flags in _SEMBUF.iter_unpack(data)):
            self._watch(caller.pid)
        wish = Wish(Call.SEMOP, identifier, caller, (limit_ns, 0, 0), data)
        return await self._verdict(call, Kind.SEMAPHORES, wish, errno.EINTR)

    # -- control ---------------------------------------------------------------------------------

    def _controlling(self, kind: Kind) -> Judge:
        async def control(call: HeldCall) -> Verdict:
            at = 1 if kind is Kind.SEMAPHORES else 0
            command = call.int_at(1 + at)
            identifier, address = call.int_at(0), call.arguments[2 + at]
            if self._is_local(kind, identifier, command):
                return GO_ON
            if command not in COMMANDS[kind]:
                return await self._control_other(call, kind, command, address)
            number = call.int_at(1) if at else 0
            data = b""
            if command == SET:
                data = read_memory(call.thread, address, SIZES[kind])
            elif at and command == SETALL:
                count = await self._count(call, identifier)
                if count < 0:
                    return Verdict(error=-count)
                data = read_memory(call.thread, address, 2 * count)
            words = (number, command, as_int(address) if command == SETVAL and at else 0)
            caller = read_caller(call.thread)
            wish = Wish(CONTROLS[kind], identifier, caller, words, data)
            verdict = await self._verdict(call, kind, wish, RESTARTS)
            if verdict.data:
                return dataclasses.replace(verdict, written=(address, verdict.data))
            return verdict

        return control

    async def _control_other(
        self, call: HeldCall, kind: Kind, command: int, address: int
    ) -> Verdict:
        if command == LIMITS:
            return GO_ON
        if command == COUNTS[kind]:
            highest, data = await self._indexes.count(kind, read_caller(call.thread).pid)
            return Verdict(highest, written=(address, data))
        if command in {BY_INDEX[kind], BY_INDEX_ANY[kind]}:
            return await self._look(call, kind, command, address)
        if kind is Kind.MEMORY and command in LOCKING:
            return await self._attach(call)
        return Verdict(error=errno.EINVAL)

    async def _look(self, call: HeldCall, kind: Kind, command: int, address: int) -> Verdict:
        """Say of an object what IPC_STAT does, and return its identifier."""
        caller = read_caller(call.thread)
        found = await self._indexes.find(kind, caller.pid, call.int_at(0))
        if found is None:
            return Verdict(error=errno.EINVAL)
        reader = ROOT if command == BY_INDEX_ANY[kind] else caller
        wish = Wish(CONTROLS[kind], found, reader, (0, STAT, 0))
        verdict = await self._verdict(call, kind, wish, RESTARTS)
        if verdict.error:
            return verdict
        return dataclasses.replace(verdict, result=found, written=(address, verdict.data))

    async def _count(self, call: HeldCall, identifier: int) -> int:
        """Return how many semaphores a set has, or a negative errno."""
        wish = Wish(Call.SEMCTL, identifier, ROOT, (0, STAT, 0))
        number = call.id ^ FIRST
        outcome = await self._do(call, Kind.SEMAPHORES, wish, number)
        self._settle(Kind.SEMAPHORES, identifier, number)()
        if outcome.result < 0:
            return outcome.result
        count: int = _SEM_NSEMS.unpack_from(outcome.data)[0]
        return count if count <= MOST_SEMAPHORES else -errno.EINVAL

    # -- who has something to undo elsewhere -----------------------------------------------------

    def is_undoing(self, pid: int) -> bool:
        """Tell whether a process uses SEM_UNDO elsewhere, and has not ended."""
        return pid in self._undoing

    def _watch(self, pid: int) -> None:
        """From now on the others are told when this process ends."""
        if pid in self._undoing:
            return
        UNDOS.mkdir(exist_ok=True)
        (UNDOS / str(pid)).write_text(json.dumps(start_of(pid)))
        self._undoing.add(pid)
        self._tasks.spawn(self._await_end(pid))

    async def _await_end(self, pid: int, *, lives: bool = True) -> None:
        if lives:
            await wait_status(pid)
        self._undoing.discard(pid)
        # This one, too: objects of a dead node may be here.
        nodes = [*self._places.others, self._places.own.node]
        await asyncio.gather(*(self._tell_end(node, pid) for node in nodes))
        (UNDOS / str(pid)).unlink(missing_ok=True)

    async def _tell_end(self, node: int, pid: int) -> None:
        with contextlib.suppress(SsiError):
            await self._asking.ask(node, "ipc-ended", {"pid": pid})

    def take_over(self) -> None:
        """Watch those of the daemon before this one."""
        UNDOS.mkdir(exist_ok=True)
        for path in UNDOS.iterdir():
            pid = int(path.name)
            lives = _is_same(pid, path)
            if lives:
                self._undoing.add(pid)
            self._tasks.spawn(self._await_end(pid, lives=lives))


def _ours(judge: Judge) -> Judge:
    """Return what leaves those to the kernel that are in an IPC namespace of their own."""
    own = Path("/proc/self/ns/ipc").stat().st_ino

    async def judge_ours(call: HeldCall) -> Verdict:
        try:
            if Path(f"/proc/{call.thread}/ns/ipc").stat().st_ino != own:
                return GO_ON
        except OSError:
            return GO_ON  # it has just been killed
        return await judge(call)

    return judge_ours


def _is_same(pid: int, path: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return bool(start_of(pid) == json.loads(path.read_text()))
    return False


def _read(outcome: Outcome) -> Verdict:
    if outcome.result < 0:
        return Verdict(error=-outcome.result)
    return Verdict(outcome.result, data=outcome.data)
