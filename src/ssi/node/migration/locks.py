"""Locks of files: which a process holds, and who waits for them.

Where a process comes to, its locks are asked for before it lets go of them where it was: its own
CRIU has children do so that share its descriptors, and they wait (native/criu/preload.c). Once the
source has let go they have the locks, unless somebody else has waited longer: then the process
stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import errno
import fcntl
import itertools
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import NodeLost, ProtocolError
from ssi.common.wire import Message
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.migration.criu import VARIABLE, CannotMove
from ssi.node.migration.holder import Holder, is_killed
from ssi.node.process.asking import Asking
from ssi.node.process.caller import MAX_PID
from ssi.node.process.descriptors import find_sharers, is_on_root, is_same
from ssi.node.smallfiles import read_bytes, read_text
from ssi.node.waiting import STEP_S

LOCKSPACE = "root"
"""Of the root in DLM, as mount has made it."""

QUEUED_S = 30.0

MAX_INODE = 2**63
FLOCK, FCNTL = 73, 72  # x86-64
_F_OFD_SETLKW = 38
_LOCK = re.compile(r"^lock:\s+\d+: (\w+)\s+\w+\s+\w+ \S+ [0-9a-f]+:[0-9a-f]+:(\d+) ", re.MULTILINE)
_WAITING = re.compile(r"^(\d+) .* nodeid (\d+) pid (\d+) .*\bWAITING\b", re.MULTILINE)


class Kind(enum.StrEnum):
    """Of a lock, as the kernel calls it."""

    FLOCK = "FLOCK"
    POSIX = "POSIX"
    OFD = "OFDLCK"


@dataclasses.dataclass(frozen=True, slots=True)
class Lock:
    """What a process has locked, or a part of it."""

    kind: str
    inode: int
    path: str
    fd: int = -1

    def dump(self) -> Message:
        """Return it as a message."""
        return {"kind": self.kind, "inode": self.inode, "path": self.path}

    @classmethod
    def load(cls, message: Message) -> Lock:
        """Read it from a message, or raise ProtocolError."""
        kind = wire.get_text(message, "kind")
        if kind not in set(Kind):
            raise ProtocolError(f"a lock of kind {kind!r:.60}")
        inode = wire.get_int(message, "inode", 0, MAX_INODE)
        return cls(kind, inode, wire.get_text(message, "path"))


def list_locks(pid: int) -> list[Lock]:
    """Return the locks that a process holds; raises OSError."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fdinfo"):
        with contextlib.suppress(FileNotFoundError):  # it has just been closed
            info = read_text(f"/proc/{pid}/fdinfo/{name}")
            for kind, inode in _LOCK.findall(info):
                path = os.readlink(f"/proc/{pid}/fd/{name}")
                found.append(Lock(kind, int(inode), path, int(name)))
    return found


def find_obstacles(pid: int) -> Iterator[str]:
    """Tell which locks of a process cannot come along."""
    held = list_locks(pid)
    sharers = find_sharers(pid, {lock.fd for lock in held})
    for lock in held:
        what = f"it holds a lock of {lock.path}"
        if lock.kind not in set(Kind):
            yield f"{what}, a {lock.kind.lower()}"
        elif not is_on_root(lock.path, Path(f"/proc/{pid}/fd/{lock.fd}").stat()):
            yield what
        elif others := [o for o, fd in sharers[lock.fd] if is_same(pid, lock.fd, o, fd)]:
            yield f"{what}, which process {others[0]} has open together with it"


def _waits(number: int, operation: int) -> bool:
    """Tell whether a system call waits for a lock."""
    if number == FLOCK:
        return not operation & fcntl.LOCK_NB
    return number == FCNTL and operation in {fcntl.F_SETLKW, _F_OFD_SETLKW}


def find_waiting() -> list[tuple[int, int, int]]:
    """Return which threads of this node wait for locks: thread, inode, and by which system call.

    GFS2 does not let go of who waits in flock, killed or not. Who is killed passes the lock on.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*/task/[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            number, *words = read_text(folder / "syscall").split()
            waits = _waits(int(number), int(words[1], 16))
            if waits and not is_killed(read_text(folder / "status")):
                inode = (folder / "fd" / str(int(words[0], 16))).stat().st_ino
                found.append((int(folder.name), inode, int(number)))
    return found


def list_takers(move: str) -> list[int]:
    """Return the processes of this node that are, or were forked from, the CRIU of a move."""
    wanted = f"{VARIABLE}={move}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if read_text(folder / "comm") != "criu\n":
                continue
            if wanted in read_bytes(folder / "environ").split(b"\0"):
                found.append(int(folder.name))
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Waiter:
    """Somebody who waits for a lock."""

    node: int
    pid: int
    inode: int


class Locks:
    """Finds who waits, on all nodes."""

    def __init__(self, asking: Asking, ics: Ics) -> None:
        self._asking = asking
        ics.serve("lock-waiters", self._answer)

    async def _answer(self, call: Call) -> Message:
        inodes = wire.get_ints(call.body, "inodes", 0, MAX_INODE)
        waiting = await asyncio.to_thread(find_waiting)
        return {
            "waiters": [{"pid": pid, "inode": one} for pid, one, _ in waiting if one in inodes]
        }  # fmt: skip

    async def wait_queued(self, takers: Collection[Holder]) -> None:
        """Wait until each of these has its lock, or stands in line for it."""
        async with asyncio.timeout(QUEUED_S):
            while True:
                waiting = await asyncio.to_thread(find_waiting)
                in_line = {pid for pid, _, number in waiting if number == FLOCK}
                in_line |= {
                    one.pid for one in await _list_queued() if one.node == self._asking.node
                }
                if all(taker.ended.is_set() or taker.pid in in_line for taker in takers):
                    return
                await asyncio.sleep(STEP_S)

    async def check(self, locks: Collection[Lock], ours: Collection[int] = ()) -> None:
        """Raise CannotMove if others wait for one of these than `ours`, processes of this node."""
        paths = {lock.inode: lock.path for lock in locks}
        if not paths:
            return
        found = await asyncio.gather(*(self._ask(node, list(paths)) for node in self._asking.alive))
        for one in [*itertools.chain(*found), *await _list_queued()]:
            is_ours = one.node == self._asking.node and one.pid in ours
            if one.inode in paths and not is_ours:
                raise CannotMove(
                    f"process {one.pid} of node{one.node} waits for its lock of {paths[one.inode]}",
                    number=errno.EAGAIN,
                )

    async def _ask(self, node: int, inodes: list[int]) -> list[Waiter]:
        with contextlib.suppress(NodeLost):
            answer = await self._asking.ask(node, "lock-waiters", {"inodes": inodes})
            return [
                Waiter(
                    node, wire.get_int(one, "pid", 1, MAX_PID),
                    wire.get_int(one, "inode", 0, MAX_INODE),
                )
                for one in wire.get_objects(answer, "waiters")
            ]  # fmt: skip
        return []


async def _list_queued() -> list[Waiter]:
    """Return who waits in the queues of fcntl's locks, which are the same on all nodes."""
    process = await asyncio.create_subprocess_exec(
        "dlm_tool", "plocks", LOCKSPACE,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    text, _ = await process.communicate()
    return [
        Waiter(int(node), int(pid), int(inode))
        for inode, node, pid in _WAITING.findall(text.decode(errors="replace"))
    ]
