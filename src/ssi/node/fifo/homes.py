"""In which node's kernel the pipe of each FIFO is: in that of the first node where it was opened.

That node's own processes use the pipe as they would without a cluster, and nobody sees them do it.
What is known of them: how many opens were let through (`enter`), and, once the pipe is gone, that
all of them are over (`leave`). It is kept in a file, as the kernel tells it but once.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

from ssi.node.cluster import Cluster
from ssi.node.state.fifos import MAX_FIFOS, Fifos, Home, check_name
from ssi.node.state.view import View

FILE = Path("/run/ssi/fifos.json")
LINGER_S = 5.0
"""How long a pipe that nobody uses stays where it is: a script may open it again soon."""

REMEMBERED = 200
CHANGE_S = 0.1


@dataclasses.dataclass(slots=True)
class _Uses:
    """What may use the pipes of this node, by name."""

    own: collections.Counter[str]
    """Opens by this node's processes that are not known to be over."""
    heard: collections.deque[int]
    """The kernel's last requests: one that it repeats is not counted twice."""


def _load(path: Path) -> _Uses:
    with contextlib.suppress(OSError, ValueError, KeyError):
        saved = json.loads(path.read_text())
        own = collections.Counter({check_name(name): int(n) for name, n in saved["own"].items()})
        return _Uses(own, collections.deque(saved["heard"], REMEMBERED))
    return _Uses(collections.Counter(), collections.deque(maxlen=REMEMBERED))


class Homes:
    """All that this node knows of."""

    def __init__(self, cluster: Cluster, path: Path = FILE) -> None:
        self._cluster = cluster
        self._path = path
        self._uses = _load(path)
        self._leaving: set[str] = set()
        """Released, which not all know yet."""
        self._lingering: dict[str, asyncio.TimerHandle] = {}
        self.is_used: Callable[[str], bool] = lambda _: False
        """Whether others use a pipe of this node."""

    @property
    def node(self) -> int:
        """This node."""
        return self._cluster.node

    @property
    def boot(self) -> str:
        """This life of it."""
        return self._cluster.boot

    @property
    def _state(self) -> tuple[Fifos, View]:
        known = self._cluster.known
        return (known.fifos, known.view) if known else (Fifos(), View())

    def find(self, name: str) -> Home | None:
        """Return where the pipe is, if that node lives."""
        fifos, view = self._state
        home = fifos.homes.get(name)
        return home if home and home.is_alive(view) else None

    def is_here(self, name: str) -> bool:
        """Tell whether the pipe is here, and stays."""
        home = self.find(name)
        return home is not None and self._is_own(home) and name not in self._leaving

    def _is_own(self, home: Home) -> bool:
        return (home.node, home.boot) == (self.node, self.boot)

    def list_gathering(self) -> set[str]:
        """Return the FIFOs that are to be gathered here."""
        fifos, _ = self._state
        return {name for name, home in fifos.homes.items() if home.gathers and self._is_own(home)}

    def list_orphans(self) -> set[str]:
        """Return the FIFOs whose home is dead."""
        fifos, view = self._state
        return {name for name, home in fifos.homes.items() if not home.is_alive(view)}

    def is_lowest(self) -> bool:
        """Tell whether this is the member that does what no other one is there for."""
        _, view = self._state
        return self.node == min(view.members, default=0)

    def _propose(self, name: str, operation: str) -> None:
        self._cluster.propose("fifos", operation, name=name, node=self.node, boot=self.boot)

    async def wait_change(self) -> None:
        """Wait until something may be different: of some changes nobody tells."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CHANGE_S):
                await self._cluster.changes.wait()

    async def claim(self, name: str) -> Home:
        """Return where the pipe is: here, if it was nowhere. Raises OSError."""
        if (home := self.find(name)) is None:
            fifos, _ = self._state
            if name not in fifos.homes and len(fifos.homes) >= MAX_FIFOS:
                # So many are in use at once.
                raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
            self._propose(name, "claim")
            await self._cluster.changes.wait_for(lambda: self.find(name) is not None)
            home = self.find(name)
            assert home
        return home

    def settle(self, name: str) -> None:
        """All ends are here."""
        self._propose(name, "settle")

    # -- who uses the pipes here -----------------------------------------------------------------

    def enter(self, name: str, number: int) -> None:
        """The request `number`, an open, is let through to the kernel's pipe."""
        self._count(name, number, 1)

    def leave(self, name: str, number: int, opens: int) -> None:
        """The request `number` says that the pipe is gone which so many opens were for."""
        self._count(name, number, -opens)
        self.look(name)

    def _count(self, name: str, number: int, more: int) -> None:
        if number in self._uses.heard:
            return
        self._uses.heard.append(number)
        self._uses.own[name] += more
        self._uses.own += collections.Counter()  # forgets those that nobody uses
        fresh = self._path.with_suffix(".partial")
        fresh.write_text(json.dumps({"own": self._uses.own, "heard": list(self._uses.heard)}))
        fresh.rename(self._path)

    def _is_idle(self, name: str) -> bool:
        return not self._uses.own[name] and not self.is_used(name)

    def look(self, name: str) -> None:
        """If nobody uses the pipe any more, give it up after a while."""
        if self._is_idle(name) and name not in self._lingering:
            loop = asyncio.get_running_loop()
            self._lingering[name] = loop.call_later(LINGER_S, self._end_lingering, name)

    def look_at_all(self) -> None:
        """A daemon begins: it is not known for how long pipes have been idle."""
        fifos, _ = self._state
        for name, home in fifos.homes.items():
            if self._is_own(home):
                self.look(name)

    def _end_lingering(self, name: str) -> None:
        del self._lingering[name]
        self.release(name)

    def release(self, name: str) -> bool:
        """Give the pipe up if nobody uses it; return whether that is so."""
        if not self.is_here(name) or not self._is_idle(name):
            return False
        if name in self.list_gathering():
            return False
        self._leaving.add(name)
        self._propose(name, "release")
        return True

    def hear_changes(self) -> None:
        """The state has changed: what was released is."""
        self._leaving = {
            name for name in self._leaving if (home := self.find(name)) and self._is_own(home)
        }
