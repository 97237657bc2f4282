"""This node's objects, as processes of other nodes use them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import SsiError
from ssi.common.wire import Message
from ssi.node.ics.answering import Call as Question
from ssi.node.ics.ics import Ics
from ssi.node.ipc.keeper import (
    CONTROLS,
    GETS,
    GONE,
    MAX_NUMBER,
    ROOT,
    Call,
    IpcKeeper,
    Kind,
    Outcome,
    Wish,
)
from ssi.node.ipc.places import Places, owner_of
from ssi.node.ipc.segments import Segments
from ssi.node.ipc.snapshots import FOLDER, Snapshots
from ssi.node.process.asking import Asking
from ssi.node.process.caller import MAX_PID
from ssi.node.state.ipc import MAX_ID

CREAT, EXCL, NOWAIT = 0o1000, 0o2000, 0o4000
RMID, SET, STAT = 0, 1, 2
SETVAL, SETALL = 16, 17
COPY = 0o40000

MAKING_S, THROUGH_S = 5.0, 0.1
"""How long one may take from being let through to having made its object, and usually takes."""

CHANGING = {Call.SEMOP, Call.MSGSND, Call.MSGRCV}
_KEY = struct.Struct("=i")


def changes(wish: Wish) -> bool:
    """Tell whether an object is another when this has been done to it."""
    if wish.call is Call.MSGRCV:
        return not wish.words[2] & COPY
    return wish.call in CHANGING or (
        wish.call in CONTROLS.values() and wish.words[1] in {SET, SETVAL, SETALL}
    )


class Objects:
    """All of this node."""

    def __init__(
        self, places: Places, keeper: IpcKeeper, segments: Segments, snapshots: Snapshots,
        asking: Asking, ics: Ics,
    ) -> None:  # fmt: skip
        self._places = places
        self._keeper = keeper
        self._segments = segments
        self._snapshots = snapshots
        self._asking = asking
        self._owners: set[int] = set()
        """Whom the keeper may have something of."""
        self._making: dict[tuple[int, int], tuple[int, float]] = {}
        """Keys whose objects processes of this node were let through to make: who, and when."""
        self._leaving: set[tuple[int, int]] = set()
        """Keys whose objects are being removed."""
        ics.serve("ipc-do", self._answer_do)
        ics.serve("ipc-get", self._answer_get)
        ics.serve("ipc-done", self._answer_done)
        ics.serve("ipc-cancel", self._answer_cancel)
        ics.serve("ipc-ended", self._answer_ended)
        ics.serve("ipc-gone", self._answer_gone)

    def _owner(self, node: int) -> int:
        owner = owner_of(self._places.home_of(node))
        self._owners.add(owner)
        return owner

    def _is_here(self, question: Question) -> bool:
        return wire.get_text(question.body, "boot") == self._places.own.boot

    async def _answer_do(self, question: Question) -> Message:
        if not self._is_here(question):
            return {"lost": True}
        wish = Wish.load(wire.get_object(question.body, "wish"))
        number = wire.get_int(question.body, "number", 0, MAX_NUMBER)
        owner = self._owner(question.node)
        if wish.call in CONTROLS.values() and wish.words[1] == RMID:
            outcome = await self._remove(owner, number, wish)
        else:
            other = question.node != self._places.own.node
            if other and changes(wish):
                self._note_shared(wish.call, wish.object)
            snapshot = other and changes(wish)
            outcome = await self._keeper.do(owner, number, wish, snapshot=snapshot)
            if wish.call is Call.SHMCTL and outcome.result >= 0:
                outcome = await self._complete(wish, outcome)
        return {"lost": True} if outcome is GONE else {"lost": False, **outcome.dump()}

    async def _complete(self, wish: Wish, outcome: Outcome) -> Outcome:
        """Other nodes' kernels may have that memory as well."""
        if wish.words[1] == SET:
            await self._segments.tell_permissions(wish.object)
            return outcome
        data = await self._segments.complete(wish.object, outcome.data)
        return dataclasses.replace(outcome, data=data)

    # -- keys ------------------------------------------------------------------------------------

    def let_make(self, kind: int, key: int, pid: int) -> bool:
        """Let a process of this node through to get the object of a key, or make it.

        False while that is being removed.
        """
        if (kind, key) in self._leaving:
            return False
        now = time.monotonic()
        recent = {one: made for one, made in self._making.items() if made[1] > now - MAKING_S}
        self._making = {**recent, (kind, key): (pid, now)}
        return True

    def _is_made(self, kind: int, key: int) -> bool:
        """Tell whether somebody who was let through may not have got through yet."""
        made = self._making.get((kind, key))
        return made is not None and time.monotonic() - made[1] < MAKING_S

    @contextlib.contextmanager
    def _holding(self, kind: int, key: int) -> Iterator[None]:
        """Let nobody through to a key meanwhile."""
        self._leaving.add((kind, key))
        try:
            yield
        finally:
            self._leaving.discard((kind, key))

    async def _release(self, kind: Kind, key: int) -> None:
        """Give a key up, unless somebody has made another object of it; nobody is let through."""
        _, when = self._making.get((kind, key), (0, 0.0))
        await asyncio.sleep(max(0.0, when + THROUGH_S - time.monotonic()))
        there = await self._keeper.look(Wish(GETS[kind], 0, ROOT, (key, 0, 0)))
        if there.result < 0:
            await self._places.release(kind, key)

    async def _answer_get(self, question: Question) -> Message:
        if not self._is_here(question):
            return {"again": True}
        wish = Wish.load(wire.get_object(question.body, "wish"))
        number = wire.get_int(question.body, "number", 0, MAX_NUMBER)
        kind = next(kind for kind, call in GETS.items() if call is wish.call)
        key, size, flags = wish.words
        if self._places.find_key(kind, key) != self._places.own or (kind, key) in self._leaving:
            return {"again": True}
        owner = self._owner(question.node)
        there = Wish(wish.call, 0, wish.caller, (key, size, flags & ~(CREAT | EXCL)))
        outcome = await self._keeper.do(owner, number, there, snapshot=True)
        if outcome.result == -errno.ENOENT:
            self._keeper.done(owner, number)
            if not flags & CREAT:
                return {"again": False, **outcome.dump()}
            if not self._is_made(kind, key):
                # Somebody wanted to make it, and has not; or it is gone without our having heard.
                with self._holding(kind, key):
                    await self._release(kind, key)
            return {"again": True}
        if flags & CREAT and flags & EXCL:
            outcome = Outcome(-errno.EEXIST)
        if outcome.result >= 0:
            self._note_shared(wish.call, outcome.result)
        return {"again": False, **outcome.dump()}

    # -- removal ---------------------------------------------------------------------------------

    def _shared(self, kind: int, identifier: int) -> Path:
        return FOLDER / f"shared-{kind}-{identifier}"

    def _note_shared(self, call: Call, identifier: int) -> None:
        if call in {Call.SHMGET, Call.SHMCTL}:
            return  # where that is, the kernels know
        queue = call in {Call.MSGGET, Call.MSGSND, Call.MSGRCV, Call.MSGCTL}
        self._shared(Kind.QUEUE if queue else Kind.SEMAPHORES, identifier).touch()

    async def _remove(self, owner: int, number: int, wish: Wish) -> Outcome:
        """Remove it, and what other nodes know of it."""
        kind = next(kind for kind, call in CONTROLS.items() if call is wish.call)
        about = await self._keeper.look(Wish(wish.call, wish.object, ROOT, (0, STAT, 0)))
        key = _KEY.unpack_from(about.data)[0] if about.result >= 0 else 0
        made = self._making.get((kind, key))
        if made and made[0] == wish.caller.pid:
            del self._making[kind, key]  # whoever goes on to this has got through
        with self._holding(kind, key):
            outcome = await self._keeper.do(owner, number, wish)
            if outcome.result < 0:
                return outcome
            if kind is Kind.MEMORY:
                await self._segments.hear_removal(wish.object)
            if key:
                await self._release(kind, key)
        if kind is Kind.MEMORY:
            return outcome
        self._places.remove(kind, wish.object)
        path = self._shared(kind, wish.object)
        if path.exists():
            words = {"kind": int(kind), "id": wish.object}
            asked = (self._tell_gone(node, words) for node in self._places.others)
            await asyncio.gather(*asked)
            path.unlink(missing_ok=True)
        return outcome

    async def _tell_gone(self, node: int, words: Message) -> None:
        with contextlib.suppress(SsiError):
            await self._asking.ask(node, "ipc-gone", words)

    async def _answer_gone(self, question: Question) -> Message:
        kind = wire.get_int(question.body, "kind", 0, 2)
        identifier = wire.get_int(question.body, "id", 0, MAX_ID)
        if kind == Kind.MEMORY:
            await self._segments.forget(identifier)
        else:
            self._snapshots.forget(kind, identifier)
        return {}

    # -- what is under way -----------------------------------------------------------------------

    async def _answer_done(self, question: Question) -> Message:
        number = wire.get_int(question.body, "number", 0, MAX_NUMBER)
        self._keeper.done(self._owner(question.node), number)
        return {}

    async def _answer_cancel(self, question: Question) -> Message:
        number = wire.get_int(question.body, "number", 0, MAX_NUMBER)
        self._keeper.cancel(self._owner(question.node), number)
        return {}

    async def _answer_ended(self, question: Question) -> Message:
        self._keeper.end(self._owner(question.node), wire.get_int(question.body, "pid", 1, MAX_PID))
        return {}

    def hear_changes(self) -> None:
        """Undo what the dead have to undo."""
        alive = self._places.list_owners()
        known = self._owners | {owner for owner, _ in self._keeper.held}
        for owner in known - alive - {0}:
            self._keeper.drop(owner)
        self._owners &= alive

    # -- heirs -----------------------------------------------------------------------------------

    async def make_anew(self, snapshot: bytes) -> bool:
        """Make an object of a dead node here; tell whether it is."""
        return await self._keeper.restore(snapshot) >= 0

    def settle(self, owner: int, pid: int, *, ended: bool) -> None:
        """Somebody who has something to undo in what was made anew has ended, or lives."""
        if owner not in self._places.list_owners():
            self._keeper.drop(owner)
        elif ended:
            self._keeper.end(owner, pid)
        else:
            self._owners.add(owner)
            self._keeper.held.add((owner, pid))

    def note_shared(self, kind: Kind, identifier: int) -> None:
        """Others have it as it was."""
        self._shared(kind, identifier).touch()
