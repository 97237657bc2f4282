"""On which node the queue of each name is: on that where it was made."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import os
from pathlib import Path
from urllib.parse import unquote_to_bytes

from ssi.node.cluster import Cluster
from ssi.node.root import is_mounted, run
from ssi.node.state.ipc import Home, may_take
from ssi.node.state.queues import MAX_QUEUES, Queues, queue_name
from ssi.node.state.view import View

FOLDER = Path("/run/ssi/mqueue")
"""This kernel's own queues."""

CHANGE_S = 0.1
MAKING_S = 5.0
"""What a killed daemon has let be made is there by then, or will not be."""


class Homes:
    """All that this node knows of."""

    def __init__(self, cluster: Cluster, folder: Path = FOLDER) -> None:
        self._cluster = cluster
        self._folder = folder
        self._making: collections.Counter[str] = collections.Counter()
        """How many of this node's processes have been let make a queue, and have not said more."""

    async def mount(self) -> None:
        """Have this kernel's queues to look at."""
        if not is_mounted(self._folder):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            await run("mount", "-t", "mqueue", "mqueue", os.fspath(self._folder))

    @property
    def own(self) -> Home:
        """This life of this node."""
        return Home(self._cluster.node, self._cluster.boot)

    @property
    def _known(self) -> tuple[Queues, View]:
        known = self._cluster.known
        return (known.queues, known.view) if known else (Queues(), View())

    def find(self, name: str) -> Home | None:
        """Return where the queue is, if that node lives."""
        queues, view = self._known
        home = queues.homes.get(name)
        return home if home and home.is_alive(view) else None

    def list_all(self) -> dict[str, Home]:
        """Return where all queues are."""
        queues, view = self._known
        return queues.list_living(view)

    def is_moving(self, name: str) -> bool:
        """Tell whether the queue's node is dead, and it may be made anew."""
        queues, view = self._known
        home = queues.homes.get(name)
        return home is not None and not home.is_alive(view) and home in queues.lives

    def follow(self, home: Home) -> Home | None:
        """Return where the queues of a home are now; None: they are gone with it."""
        queues, view = self._known
        return queues.follow(home, view)

    def is_of(self, boot: str, dead: list[Home]) -> bool:
        """Tell whether what a life of a node had is with one of the dead now."""
        queues, view = self._known
        if boot in {home.boot for home in dead}:
            return True
        return boot in queues.heirs and queues.follow(queues.heirs[boot], view) in dead

    def list_dead(self) -> list[Home]:
        """Return the lives that are over, and whose queues nobody has taken yet."""
        queues, view = self._known
        return queues.list_dead(view)

    def list_taken(self) -> list[Home]:
        """Return those of them whose queues it is this node that takes."""
        takers = self._known[0].takers
        return [home for home in self.list_dead() if takers.get(home.boot) == self.own]

    def list_moving(self) -> dict[str, Home]:
        """Return where those were whose node is dead, and that may be made anew."""
        queues, view = self._known
        dead = queues.list_dead(view)
        return {name: home for name, home in queues.homes.items() if home in dead}

    def is_lowest(self) -> bool:
        """Tell whether this is the member that does what no other one is there for."""
        return self._cluster.node == min(self._known[1].members, default=0)

    @property
    def others(self) -> list[int]:
        """The other nodes that live."""
        return sorted(self._known[1].alive - {self._cluster.node})

    def is_living(self, boot: str) -> bool:
        """Tell whether a life of a node has not ended."""
        view = self._known[1]
        return boot in {view.boot_of(node) for node in view.alive}

    @property
    def witness(self) -> Home | None:
        """Who is told of what this node's own processes do to queues that others know."""
        view, own = self._known[1], self._cluster.node
        others = [node for node in view.members if node != own]
        if not others:
            return None
        node = min(others, key=lambda one: (one < own, one))
        return Home(node, view.boot_of(node))

    def is_here(self, name: str) -> bool:
        """Tell whether it is this node that has the queue, or makes it."""
        return self.find(name) == self.own

    def is_alive(self, home: Home) -> bool:
        """Tell whether that life of a node has not ended."""
        return home.is_alive(self._known[1])

    def path_of(self, name: str) -> Path:
        """Return where one of this kernel's queues is seen."""
        return self._folder / os.fsdecode(unquote_to_bytes(name))

    def exists(self, name: str) -> bool:
        """Tell whether this kernel has it."""
        return os.path.lexists(self.path_of(name))

    async def wait_change(self) -> None:
        """Wait until something may be different: of some changes nobody tells."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CHANGE_S):
                await self._cluster.changes.wait()

    def _propose(self, operation: str, **fields: object) -> None:
        self._cluster.propose("queues", operation, **self.own.dump(), **fields)

    async def claim(self, name: str) -> Home | None:
        """Return where the queue is: here, if it was nowhere. Raises OSError; None: it moves."""
        if (home := self.find(name)) is None:
            if len(self.list_all()) + len(self.list_moving()) >= MAX_QUEUES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._propose("claim", name=name)
            await self._cluster.changes.wait_for(
                lambda: self.find(name) is not None or self.is_moving(name)
            )
            home = self.find(name)
        return home

    async def share(self) -> None:
        """Others have queues of this node open: somebody is to take them if it dies."""
        if self.own not in self._known[0].lives:
            self._propose("share")
            await self._cluster.changes.wait_for(lambda: self.own in self._known[0].lives)

    def begin(self) -> None:
        """This node is to take what dead ones had and nobody takes."""
        queues, view = self._known
        for dead in queues.list_dead(view):
            if may_take(self.own, dead, queues.takers, view):
                self._propose("begin", dead=dead.dump())

    async def take(self, dead: list[Home], names: list[str]) -> None:
        """All of dead nodes that could be made anew is here; return when that is known here."""
        self._propose("take", dead=[home.dump() for home in dead], names=names)
        await self._cluster.changes.wait_for(lambda: not set(dead) & set(self.list_dead()))

    # -- what is made here, and removed ----------------------------------------------------------

    def let_make(self, name: str) -> None:
        """A process of this node is let make it; it says when it has tried."""
        self._making[name] += 1

    async def end_making(self, name: str) -> None:
        """It has been tried, with whatever success."""
        if self._making[name] > 1:
            self._making[name] -= 1
        else:
            del self._making[name]
        await self.look(name)

    async def look(self, name: str) -> None:
        """If there is no such queue here any more, return when all know that."""
        if not self._making[name] and self.is_here(name) and not self.exists(name):
            self._propose("release", name=name)
            await self._cluster.changes.wait_for(lambda: not self.is_here(name))

    async def look_at_all(self) -> None:
        """A daemon begins: what was removed or not made under the one before it is not here."""
        for path in self._folder.iterdir():
            if self.find(name := queue_name(os.fsencode(path.name))) is None:
                self._propose("claim", name=name)
        await asyncio.sleep(MAKING_S)
        for name in self.list_all():
            await self.look(name)
