"""Descriptors of this node's processes whose queues are on others: all is done there."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import NodeLost, SsiError
from ssi.common.wire import Message
from ssi.node.process.asking import FOREVER_S, Asking
from ssi.node.process.caller import read_caller
from ssi.node.process.device import HERE, KIND_SHIFT, Control, Kind, QueueAnswer, Result, Wanted
from ssi.node.process.farends import Kept, Watches
from ssi.node.process.remembered import Remembered
from ssi.node.queues.homes import Homes
from ssi.node.queues.keeper import FOREVER, MAX_TEXT, Order, Outcome
from ssi.node.queues.notes import Note, read_note
from ssi.node.queues.shared import Shared
from ssi.node.queues.snapshots import Snapshots
from ssi.node.state.ipc import Home
from ssi.node.state.queues import queue_name
from ssi.node.tasks import Tasks

FOLDER = Path("/run/ssi/queues")
AWAIT = 1 << 58
"""Set in the number of what follows from a request."""

MAX_END = 2**32 - 1
_WORDS = struct.Struct("=qII")


class Command(enum.IntEnum):
    """What is done (image/kernel/patches/mqueue-elsewhere.patch)."""

    SEND = 1
    RECEIVE = 2
    GETATTR = 3
    NOTIFY = 4


@dataclasses.dataclass(slots=True, eq=False)
class End:
    """One of them."""

    serial: int
    number: int
    """Of the request that opened it."""
    home: int
    boot: str
    end: int
    """What it is called there."""
    about: str
    """What the kernel is told of it."""
    note: dict[str, object] | None = None
    """Who is to be notified (notes.py)."""

    @property
    def handle(self) -> int:
        """What the kernel calls it."""
        return Kind.QUEUE << KIND_SHIFT | self.serial


class Ends:
    """All of this node."""

    def __init__(
        self, homes: Homes, shared: Shared, snapshots: Snapshots, asking: Asking,
        folder: Path = FOLDER,
    ) -> None:  # fmt: skip
        self._homes = homes
        self._shared = shared
        self._snapshots = snapshots
        self._asking = asking
        self._kept = Kept(folder, End)
        self._opening: set[int] = set()
        """Requests that open one."""
        self._given_up: set[int] = set()
        self._doing: dict[int, bool] = {}
        """Requests that are under way, and whether each is to end soon."""
        self._remembered = Remembered(asking, "queue-done")
        self._watches = Watches(self._watch, self._remembered.settle)
        self._tasks = Tasks()

    def take_over(self) -> None:
        """Notify whom the daemon before this one would have."""
        for end in self._kept:
            if end.note:
                self._tasks.spawn(self._await_note(end, Note.load(end.note)))

    async def _ask(self, home: Home, name: str, words: dict[str, object]) -> Message | None:
        """Return what a home says, and keep what a queue is now; None if it is lost."""
        if not self._homes.is_alive(home):
            return None
        try:
            answer = await self._asking.ask(home.node, name, words, within_s=FOREVER_S)
        except NodeLost:
            return None
        if "lost" in answer and wire.get_flag(answer, "lost"):
            return None
        if not self._homes.is_alive(home):
            # Its heir may have asked here already what it was: that is what counts.
            return None
        if snapshot := wire.get_bytes({"snapshot": answer.get("snapshot", "")}, "snapshot"):
            self._snapshots.keep(home.boot, snapshot)
        return answer

    # -- names -----------------------------------------------------------------------------------

    async def open(self, wanted: Wanted, name: bytes, flags: int) -> QueueAnswer:
        """Return a handle, or HERE if the kernel is to look for it and make it; raises OSError."""
        if end := self._kept.find_opened(wanted.number):
            return QueueAnswer(end.handle, wire.get_bytes({"about": end.about}, "about"))
        self._opening.add(wanted.number)
        try:
            while wanted.number not in self._given_up:
                answer = await self._try_open(wanted, queue_name(name), flags)
                if answer is not None:
                    return answer
                await self._homes.wait_change()
        finally:
            self._opening.discard(wanted.number)
            self._given_up.discard(wanted.number)
        raise OSError(errno.EINTR, os.strerror(errno.EINTR))

    async def _try_open(self, wanted: Wanted, name: str, flags: int) -> QueueAnswer | None:
        """Return the answer; None if it is to be tried again."""
        makes = bool(flags & os.O_CREAT)
        home = self._homes.find(name)
        if home is None and makes:
            home = await self._homes.claim(name)
        if home is None and self._homes.is_moving(name):
            return None
        if home is None or home == self._homes.own:
            if makes:
                self._homes.let_make(name)
            return QueueAnswer(HERE)
        caller = read_caller(wanted.thread).dump()
        words = {"name": name, "number": wanted.number, "flags": flags, "caller": caller}
        answer = await self._ask(home, "queue-open", words)
        if answer is None or wire.get_flag(answer, "again"):
            return None
        if error := wire.get_int(answer, "error", 0, 4095):
            self._remembered.add(wanted.number, home.node, {"number": wanted.number})
            raise OSError(error, os.strerror(error))
        about = wire.get_bytes(answer, "about")
        end = End(
            self._kept.next_serial(), wanted.number, home.node,
            wire.get_text(answer, "boot"), wire.get_int(answer, "end", 1, MAX_END),
            wire.put_bytes(about),
        )  # fmt: skip
        self._kept.save(end)
        self._remembered.add(wanted.number, home.node, {"number": wanted.number})
        return QueueAnswer(end.handle, about)

    async def unlink(self, wanted: Wanted, name: bytes) -> None:
        """Remove a name that this kernel does not have; raises OSError."""
        known = queue_name(name)
        if self._homes.is_here(known) and not self._homes.exists(known):
            raise FileNotFoundError(errno.ENOENT, "no such queue")
        await self._unlink(wanted.number, wanted.thread, name)

    async def remove(self, number: int, thread: int, name: bytes) -> None:
        """Remove a name, wherever the queue is; raises OSError."""
        await self._unlink(number, thread, name)
        await self.settle(number)

    async def _unlink(self, number: int, thread: int, name: bytes) -> None:
        known, asked = queue_name(name), False
        caller = read_caller(thread).dump()
        words = {"name": known, "number": number, "caller": caller}
        while (home := self._homes.find(known)) or self._homes.is_moving(known):
            if home and (answer := await self._ask(home, "queue-unlink", words)):
                self._remembered.add(number, home.node, {"number": number})
                result = wire.get_int(answer, "result", -4095, 0)
                if result == -errno.ENOENT and asked:
                    return
                if result < 0:
                    raise OSError(-result, os.strerror(-result))
                return
            asked = asked or home is not None
            await self._homes.wait_change()
        # Else its node has done so, and died before it said so; or the queue died with it.
        if not asked:
            raise FileNotFoundError(errno.ENOENT, "no such queue")

    async def end_making(self, name: bytes) -> None:
        """Whom `open` has let make a queue has tried to."""
        await self._homes.end_making(queue_name(name))

    async def end_name(self, name: bytes) -> None:
        """A name of this kernel was removed; return when all nodes know."""
        await self._homes.look(queue_name(name))

    async def close(self, handle: int) -> None:
        """The last descriptor is closed: it returns when the end is."""
        end = self._kept.find(handle)
        if end is None:
            return
        while home := self._homes.follow(Home(end.home, end.boot)):
            words: dict[str, object] = {"end": end.end, "boot": home.boot}
            if await self._ask(home, "queue-close", words) is not None:
                break
            await self._homes.wait_change()
        self._kept.forget(end)

    async def tell_change(self, inode: int) -> None:
        """Return when other nodes know what one of this kernel's queues is now."""
        await self._shared.tell_change(inode)

    # -- what is done to them --------------------------------------------------------------------

    async def _do(self, wanted: Wanted, order: Order, **fields: object) -> Outcome:
        """Have the home do something, or who has taken its queues; raises OSError (EIO)."""
        self._doing[wanted.number] = False
        try:
            return await self._do_somewhere(wanted, order, fields)
        finally:
            self._doing.pop(wanted.number, None)

    async def _do_somewhere(
        self, wanted: Wanted, order: Order, fields: dict[str, object]
    ) -> Outcome:
        end = self._kept.find(wanted.handle)
        while end and (home := self._homes.follow(Home(end.home, end.boot))):
            ends = self._doing[wanted.number]
            words = {
                "number": wanted.number, "order": int(order), "end": end.end, "boot": home.boot,
                "value": 0, "size": 0, "data": "", "nonblock": wanted.nonblock or ends,
                "until": [FOREVER, 0], **fields,
            }  # fmt: skip
            answer = await self._ask(home, "queue-do", words)
            if answer is None:
                await self._homes.wait_change()
                continue
            self._note_move(end, home)
            self._remembered.add(wanted.number, home.node, {"number": wanted.number})
            result = wire.get_int(answer, "result", -4095, 2**31)
            if result == -errno.EBADF:
                break
            if result == -errno.EAGAIN and ends and not wanted.nonblock:
                result = -errno.EINTR
            value = wire.get_int(answer, "value", 0, MAX_END)
            return Outcome(result, value, wire.get_bytes(answer, "data"))
        raise OSError(errno.EIO, "the queue is gone with its node")

    def _note_move(self, end: End, home: Home) -> None:
        if (end.home, end.boot) != (home.node, home.boot) and end.serial in self._kept:
            end.home, end.boot = home.node, home.boot
            self._kept.save(end)

    async def control_queue(
        self, wanted: Wanted, command: int, length: int, body: bytes
    ) -> tuple[Result, int]:
        """Send, receive and so on; return what came of it, and a message's priority."""
        seconds, rest, priority = _WORDS.unpack_from(body)
        data, until = body[_WORDS.size :], [seconds, rest]
        match command:
            case Command.SEND:
                words = {"value": priority, "data": wire.put_bytes(data), "until": until}
                outcome = await self._do(wanted, Order.SEND, **words)
            case Command.RECEIVE:
                size = min(length, MAX_TEXT)
                outcome = await self._do(wanted, Order.RECEIVE, size=size, until=until)
            case Command.GETATTR:
                outcome = await self._do(wanted, Order.GETATTR)
            case Command.NOTIFY:
                outcome = await self._notify(wanted, data if length else None)
            case _:
                outcome = Outcome(-errno.ENOSYS)
        return Result(outcome.result, outcome.data), outcome.value

    async def read(self, wanted: Wanted, size: int) -> Result:
        """Refuse: no queue is read."""
        del wanted, size
        return Result(-errno.EINVAL)

    async def write(self, wanted: Wanted, data: bytes) -> Result:
        """Refuse: no queue is written."""
        del wanted, data
        return Result(-errno.EINVAL)

    async def control(
        self, wanted: Wanted, command: int, control: Control, argument: int, data: bytes
    ) -> Result:
        """Refuse: a queue has no ioctl."""
        del wanted, command, control, argument, data
        return Result(-errno.ENOTTY)

    async def _watch(self, wanted: Wanted, events: int) -> Result:
        return Result((await self._do(wanted, Order.WATCH, value=events)).result)

    async def poll(self, wanted: Wanted, events: int, notify: Callable[[], None] | None) -> Result:
        """Return which events there are."""
        return await self._watches.poll(wanted, events, notify)

    async def cancel(self, wanted: Wanted) -> None:
        """Have a request that is under way end soon."""
        if wanted.number in self._opening:
            self._given_up.add(wanted.number)
        elif end := self._kept.find(wanted.handle):
            if wanted.number in self._doing:
                self._doing[wanted.number] = True
            home = self._homes.follow(Home(end.home, end.boot))
            if home and self._homes.is_alive(home):
                with contextlib.suppress(SsiError):
                    await self._asking.ask(home.node, "queue-cancel", {"number": wanted.number})

    async def settle(self, number: int) -> None:
        """Take it that the kernel has the answer to a request."""
        await self._remembered.settle(number)

    def release(self, handle: int) -> None:
        """Take it that it is closed: `close` has done it."""

    # -- being notified --------------------------------------------------------------------------

    async def _notify(self, wanted: Wanted, event: bytes | None) -> Outcome:
        """Have the caller notified of the next message, or (None) no longer."""
        end = self._kept.find(wanted.handle)
        note = read_note(event, wanted.thread, wanted.number | AWAIT) if event else None
        outcome = await self._do(wanted, Order.NOTIFY, value=int(note is not None))
        if end and note and outcome.result == 0 and end.note != note.dump():
            end.note = note.dump()
            self._kept.save(end)
            self._tasks.spawn(self._await_note(end, note))
        return outcome

    async def _await_note(self, end: End, note: Note) -> None:
        there = Wanted(note.number, end.handle, 0, nonblock=False)
        comes = False
        with contextlib.suppress(OSError):
            outcome = await self._do(there, Order.AWAIT)
            comes = outcome.result == 1
        if end.note == note.dump():
            # Before it is told: twice would be worse than never.
            end.note = None
            if end.serial in self._kept:
                self._kept.save(end)
            note.tell(comes=comes)
        await self.settle(note.number)
