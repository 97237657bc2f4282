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
from ssi.node.state.ipc import Home
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

    def _propose(self, name: str, operation: str) -> None:
        self._cluster.propose("queues", operation, name=name, **self.own.dump())

    async def claim(self, name: str) -> Home:
        """Return where the queue is: here, if it was nowhere. Raises OSError."""
        if (home := self.find(name)) is None:
            if len(self.list_all()) >= MAX_QUEUES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._propose(name, "claim")
            await self._cluster.changes.wait_for(lambda: self.find(name) is not None)
            home = self.find(name)
            assert home
        return home

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
            self._propose(name, "release")
            await self._cluster.changes.wait_for(lambda: not self.is_here(name))

    async def look_at_all(self) -> None:
        """A daemon begins: what was removed or not made under the one before it is not here."""
        for path in self._folder.iterdir():
            if self.find(name := queue_name(os.fsencode(path.name))) is None:
                self._propose(name, "claim")
        await asyncio.sleep(MAKING_S)
        for name in self.list_all():
            await self.look(name)
