"""One process on its way here: what this daemon knows of it, and what the next one must know."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections.abc import Awaitable, Collection, Mapping
from pathlib import Path

from ssi.common import wire
from ssi.common.nodes import MAX_NODE
from ssi.common.wire import Message
from ssi.node.launcher import Program
from ssi.node.migration import criu
from ssi.node.migration.holder import Holder, spent, wait_first
from ssi.node.migration.locks import Lock, Locks, find_waiting, list_locks, list_takers
from ssi.node.process.bodies import Body
from ssi.node.process.ghost import Ghost
from ssi.node.smallfiles import read_text, write_bytes

logger = logging.getLogger(__name__)

RECORD = "record"
GIVEN_UP = "given-up"
"""Beside the images, from when what has stood for the process is given up for it."""


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """What a descriptor of the remote device is to lead to."""

    node: int
    ghost: str
    """Who has it there: its ghost, or a remnant."""
    fd: int
    """Of that one."""
    flags: int
    process: int
    """A handle that needs no ghost: a descriptor of a process. 0 for the others."""
    relay: bool = False
    """It is a socket."""

    def is_of(self, ghost: Ghost) -> bool:
        """Tell whether it leads to a descriptor of that ghost."""
        return self.ghost == ghost.id and not self.process

    @classmethod
    def load(cls, message: Message) -> File:
        """Read it from a message, or raise ProtocolError."""
        return cls(
            wire.get_int(message, "node", 0, MAX_NODE), wire.get_text(message, "ghost"),
            wire.get_int(message, "fd", 0, 2**20), wire.get_int(message, "flags", 0, 2**31),
            wire.get_int(message, "process", 0, 2**63), wire.get_flag(message, "relay"),
        )  # fmt: skip


@dataclasses.dataclass(slots=True, eq=False)
class Arrival:
    """One process on its way here."""

    move: str
    pid: int
    source: int
    """The node that it comes from."""
    home: int
    ghost: str
    """Its ghost is there, and is called so."""
    files: Mapping[int, File]
    """By CRIU's file entries."""
    folder: Path
    tty: int = 0
    """Its terminal's number, 0 for none."""
    pinned: bool = False
    """Nobody moves it on."""
    body: Body | None = None
    """None for one that comes home."""
    is_stranger: bool = False
    """It is to have a body: of one that a daemon before this one knew."""
    given_up: bool = False
    """What has stood for it there is none any more."""
    lazy: bool = False
    """A pager brings its memory."""
    in_place: bool = False
    """It is restored where a process has stood for it: its ghost, a remnant or a placeholder."""
    stood: Ghost | None = None
    """What has stood for it there, as it was; and is again, if it cannot be restored."""
    stopped: bool = False
    """That one was."""
    kept: dict[int, int] = dataclasses.field(default_factory=dict)
    """Duplicates of its descriptors."""
    back: Ghost | None = None
    """It is that again."""
    ready: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    """It is restored, and held."""
    refused: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    """It goes on where it comes from."""
    settled: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    """It is ready, and that is written down; or it will never be."""
    restorer: Holder | None = None
    """CRIU, when it is no more the process itself."""
    criu_gone: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    failed: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    """It is not restored, and about to be its ghost again."""
    goes_on: asyncio.Future[bool] = dataclasses.field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    over: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    """It has heard that, and nothing is left to do."""
    locks: Collection[Lock] = ()
    """What it has locked."""
    takers: list[Holder] = dataclasses.field(default_factory=list)
    """Who waits for that."""

    @property
    def program(self) -> Program:
        """What becomes the process."""
        return criu.restore(self.move, self.pid, lazy=self.lazy)

    @property
    def criu_pid(self) -> int:
        """CRIU's PID, 0 as long as it is the process itself."""
        return self.restorer.pid if self.restorer else 0

    def give_up(self) -> None:
        """Have it known that what stands for the process is about to be none any more."""
        (self.folder / GIVEN_UP).touch()
        self.given_up = True

    def take_back(self, ghost: Ghost) -> None:
        """Have the process be its ghost again: it is not restored."""
        self.given_up = False
        (self.folder / GIVEN_UP).unlink(missing_ok=True)
        self.back = ghost
        self.failed.set()

    async def wait_ready(self, end: Awaitable[None], locks: Locks) -> None:
        """Wait until it is held, or raise CannotMove with the reason why it has ended.

        `end` tells that what becomes the process has ended.
        """
        still = await wait_first(
            [end, *(each.wait() for each in self._words)], lambda: spent(self.pid, self.criu_pid)
        )
        if self.ready.is_set():
            if self.takers:
                await locks.wait_queued(self.takers)
            await locks.check(self.locks, {taker.pid for taker in self.takers})
            return
        if self.refused.is_set():
            raise criu.CannotMove("it goes on where it was")
        raise criu.CannotMove(criu.read_errors(self.folder) if still else "CRIU does nothing")

    @property
    def _words(self) -> tuple[asyncio.Event, ...]:
        """What tells that it is to be waited for no longer."""
        return self.ready, self.refused, self.criu_gone, self.failed

    @classmethod
    def find(cls, folder: Path) -> Arrival | None:
        """Return what a daemon before this one has saved."""
        try:
            saved = json.loads(read_text(folder / RECORD))
        except (OSError, ValueError):
            return None
        arrival = cls(
            folder.name, saved["pid"], saved["source"], saved["home"], saved["ghost"], {}, folder
        )  # fmt: skip
        arrival.is_stranger = saved["stranger"]
        if saved["criu"]:
            arrival.restorer = Holder.find(*saved["criu"])
        arrival.locks = [Lock.load(one) for one in saved["locks"]]
        if arrival.locks:
            waiting = {pid for pid, _, _ in find_waiting()}
            arrival.takers = [Holder(pid) for pid in list_takers(folder.name) if pid in waiting]
        return arrival

    def save(self) -> None:
        """Have the next daemon know it: it is ready."""
        saved = {
            "pid": self.pid, "source": self.source, "home": self.home, "ghost": self.ghost,
            "stranger": self.body is not None,
            "criu": [self.restorer.pid, self.restorer.begun] if self.restorer else [],
            "locks": [lock.dump() for lock in self.locks],
        }  # fmt: skip
        write_bytes(self.folder / RECORD, wire.encode(saved))

    @property
    def is_saved(self) -> bool:
        """Whether it was ready."""
        return (self.folder / RECORD).exists()

    async def has_locks(self) -> bool:
        """Wait until nobody waits for its locks; tell whether it has them."""
        if not self.locks:
            return True
        for taker in self.takers:
            await taker.ended.wait()
        has = {(lock.kind, lock.inode) for lock in list_locks(self.pid)}
        lacks = [lock for lock in self.locks if (lock.kind, lock.inode) not in has]
        for lock in lacks:
            logger.error("process %d is killed: it has lost its lock of %s", self.pid, lock.path)
        return not lacks
