"""One process that leaves this node."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import secrets
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from ssi.common.wire import Message
from ssi.node.migration.barrier import Answer, Verdict
from ssi.node.migration.criu import Way
from ssi.node.migration.holder import Holder
from ssi.node.process.bodies import Body
from ssi.node.process.family import Child
from ssi.node.process.ghost import Kind

FOLDER = Path("/run/ssi/departures")
RECORD, DECIDED, DONE = "record", "decided", "done"
"""Files of a departure: what the next daemon must know, from when the target is asked; that it
leaves; that what was here has followed."""


@dataclasses.dataclass(slots=True, eq=False)
class Departure:
    """One process on its way."""

    pid: int
    target: int
    body: Body | None
    """What it is to this node; None for one that is at home."""
    move: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))
    holder: Holder | None = None
    """CRIU, from its start."""
    begun: int = 0
    """When the process began."""
    way: Way = Way.BY_CRIU
    """How its memory goes."""
    failure: int = 0
    """An errno, if its memory cannot be sent or kept for that."""
    line: asyncio.Future[socket.socket | None] = dataclasses.field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """The connection for its images, once it may be dumped; None if it may not."""
    dumped: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    answer: asyncio.Future[Answer] = dataclasses.field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """What becomes of what is held here."""
    hold: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    held: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    """It is to end, and will, should CRIU be killed."""
    takes_place: bool = False
    """A placeholder is given up for it there: if it is not restored, its parent sees its end."""
    done: asyncio.Future[int] = dataclasses.field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """How that went: 0 or a negative errno."""
    ghost: str = ""
    keeper: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))
    """What becomes of it on a node that is not its home, if it is not killed."""
    keeps: bool = False
    """Whether descriptors stay with that."""
    halves: Sequence[int] = ()
    """Those of them that are sockets."""
    owners: Sequence[tuple[int, str]] = ()
    """Node and id of the remnants from which it has descriptors."""
    children: Sequence[Child] = ()
    kind: Kind = Kind.GHOST
    """Of what it becomes here, if it is not killed."""
    verdict: Answer | None = None
    """What the answer is if the process leaves; None until that can be said."""
    goes_on: bool = False
    """It does, on its new node."""
    runs: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    """That node has said so."""
    ended: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    times: list[tuple[str, float]] = dataclasses.field(default_factory=list)
    """When it had come how far."""

    def mark(self, what: str) -> None:
        """Note that it has come so far."""
        self.times.append((what, time.monotonic()))

    def tell_times(self) -> str:
        """Return how long each part has taken."""
        parts = itertools.pairwise(self.times)
        return ", ".join(f"{what} {then - before:.3f}" for (_, before), (what, then) in parts)

    def dump(self) -> Message:
        """Return what the next daemon must know of one that the target has been asked for."""
        assert self.verdict
        assert self.holder
        return {
            "criu": [self.holder.pid, self.holder.begun], "pid": self.pid, "begun": self.begun,
            "target": self.target, "ghost": self.ghost,
            "kill": self.verdict.verdict == Verdict.KILL, "kind": self.kind,
            "at_home": self.body is None, "keeper": self.keeper, "keeps": self.keeps,
            "halves": list(self.halves), "owners": list(self.owners),
            "takes_place": self.takes_place,
            "argv": list(self.verdict.argv), "variables": dict(self.verdict.variables),
        }  # fmt: skip

    @property
    def goes_home(self) -> bool:
        """Whether its ghost is on the node to which it goes."""
        return self.body is not None and self.body.home == self.target

    @property
    def folder(self) -> Path:
        """Where its images are."""
        return FOLDER / self.move
