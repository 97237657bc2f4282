"""One ghost: what this daemon knows of it, and the process that it is (native/onnode.c)."""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import enum
import os
import signal
import struct
from pathlib import Path

from ssi.common import wire
from ssi.common.changes import Changes
from ssi.common.nodes import MAX_NODE
from ssi.common.wire import Message
from ssi.node.local import Output
from ssi.node.process.caller import MAX_PID
from ssi.node.process.orders import OWN_SIGNAL
from ssi.node.process.users import Users
from ssi.node.processes import read_stat, start_of

PROGRAM = "/usr/bin/onnode"
MAX_NUMBER = 2**63
_QUEUEINFO = 129  # x86-64
_INFO = struct.Struct("=iii4xIIi")
INFO_SIZE = 128


class Kind(enum.StrEnum):
    """What one is there for."""

    GHOST = "ghost"
    """On the process's home node: all that it was there."""
    REMNANT = "remnant"
    """On another one, which the process has left: the parent of its children there."""
    PLACEHOLDER = "placeholder"
    """The child of a parent that is here, while its child is not."""


@dataclasses.dataclass(slots=True, eq=False)
class Ghost:
    """One of them."""

    id: str
    pid: int
    node: int
    """Where its body is."""
    begun: int
    """When the process began, in ticks."""
    output: Output | None = None
    """To it; None while it is on its way to a new daemon."""
    held: bool = False
    """This node has been booted anew since: the descriptors are gone."""
    kind: Kind = Kind.GHOST
    adopted: bool = False
    """It is what a process has left behind that has moved, or a placeholder."""
    parent: int = 0
    """Of a placeholder: whose child it is."""
    below: int = 0
    """Of a placeholder: the node that tells how it fares, where its parent has left something."""
    children: dict[int, int] = dataclasses.field(default_factory=dict)
    """The wait statuses of children here of which the process is to hear."""
    dropped: set[int] = dataclasses.field(default_factory=set)
    """Placeholders that are here no more: nobody is to hear of their end."""
    stops: bool = False
    """It has been told to stop as its body has."""
    over: bool = False
    """The body has ended, and the ghost has been told; or it is dead itself."""
    users: Users = dataclasses.field(default_factory=Users)
    """Of its descriptors."""
    waiting: dict[int, tuple[bytes, asyncio.Future[tuple[int, bytes]]]] = dataclasses.field(
        default_factory=dict
    )
    """Orders without an answer, by their numbers."""
    words: asyncio.Queue[tuple[str, Message]] = dataclasses.field(default_factory=asyncio.Queue)
    """What its body is to be told, in this order."""
    changes: Changes = dataclasses.field(default_factory=Changes)

    def dump(self) -> Message:
        """Return what the next daemon must know."""
        return {
            "id": self.id, "node": self.node, "begun": self.begun, "held": self.held,
            "adopted": self.adopted, "kind": self.kind, "parent": self.parent, "below": self.below,
            "dropped": sorted(self.dropped), "users": self.users.dump(),
        }  # fmt: skip

    def again(self) -> Ghost:
        """Return what the process is again, if it is to be another one and does not become that."""
        users = Users.load(self.users.dump())
        return dataclasses.replace(
            self, output=None, adopted=True, stops=False, users=users, waiting={},
            changes=Changes(),
        )  # fmt: skip

    @classmethod
    def load(cls, pid: int, saved: Message) -> Ghost:
        """Read it; raises ValueError, SsiError."""
        return cls(
            wire.get_text(saved, "id"), pid, wire.get_int(saved, "node", 1, MAX_NODE),
            wire.get_int(saved, "begun", 0, MAX_NUMBER), held=wire.get_flag(saved, "held"),
            adopted=wire.get_flag(saved, "adopted"), kind=Kind(wire.get_text(saved, "kind")),
            parent=wire.get_int(saved, "parent", 0, MAX_PID),
            below=wire.get_int(saved, "below", 0, MAX_NODE),
            dropped=set(wire.get_ints(saved, "dropped", 0, MAX_PID)),
            users=Users.load(wire.get_object(saved, "users")),
        )  # fmt: skip


def is_process(ghost: Ghost) -> bool:
    """Tell whether the process that became this ghost is there."""
    if ghost.kind == Kind.PLACEHOLDER and not ghost.begun:
        return Path(f"/proc/{ghost.pid}").exists()  # it has just been born
    try:
        return start_of(ghost.pid) == ghost.begun
    except (OSError, ValueError, IndexError):
        return False


def is_stopped(pid: int) -> bool:
    """Tell whether a process is there, and stopped."""
    try:
        return read_stat(pid)[0] == "T"
    except (OSError, IndexError):
        return False


def has_set_off(pid: int) -> bool:
    """Wake a ghost that is stopped; tell whether it is a ghost no more."""
    try:
        is_ghost = Path(f"/proc/{pid}/exe").readlink().name == Path(PROGRAM).name
    except OSError:
        return True
    if is_ghost and is_stopped(pid):
        wake(pid)
    return not is_ghost


def wake(pid: int) -> None:
    """Continue a ghost that has stopped with its body; not a word for the body."""
    info = _INFO.pack(signal.SIGCONT, 0, -1, os.getpid(), 0, OWN_SIGNAL).ljust(INFO_SIZE, b"\0")
    ctypes.CDLL(None).syscall(
        ctypes.c_long(_QUEUEINFO), ctypes.c_long(pid), ctypes.c_long(signal.SIGCONT), info
    )
