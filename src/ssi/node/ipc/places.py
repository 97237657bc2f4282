"""Where objects are, and this node's own range of identifiers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from pathlib import Path

from ssi.node.cluster import Cluster
from ssi.node.state.ipc import LIVES, MAX_KEYS, Home, Ipc, key_name, may_take, object_name, range_of
from ssi.node.state.view import View

logger = logging.getLogger(__name__)

RANGE = Path("/proc/sys/kernel/ipc_range")
"""image/kernel/patches/ipc-range.patch"""

CHANGE_S = 0.1


def owner_of(home: Home) -> int:
    """Return what keepers call a node, in one of its lives."""
    return zlib.crc32(home.boot.encode()) & 0xFFFFFF00 | home.node


def claim_range(cluster: Cluster) -> None:
    """Have this kernel give identifiers that no living object of the cluster has."""
    if not RANGE.exists():
        logger.warning("IPC objects are each node's own: %s is missing", RANGE)
        return
    own = int(RANGE.read_text())
    if not own:
        known = cluster.known.ipc if cluster.known else Ipc()
        used = {int(name) for name in known.lives}
        used |= {range_of(int(name.partition("-")[2])) for name in known.moved}
        first = zlib.crc32(cluster.boot.encode())
        lives = [cluster.node * LIVES + (first + n) % LIVES for n in range(LIVES)]
        own = next((life for life in lives if life not in used), lives[0])
        RANGE.write_text(f"{own}\n")
    cluster.propose("ipc", "live", range=own, node=cluster.node, boot=cluster.boot)


class Places:
    """All that this node knows of."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    @property
    def own(self) -> Home:
        """This life of this node."""
        return Home(self._cluster.node, self._cluster.boot)

    @property
    def _known(self) -> tuple[Ipc, View]:
        known = self._cluster.known
        return (known.ipc, known.view) if known else (Ipc(), View())

    @property
    def others(self) -> list[int]:
        """The other nodes that live."""
        return sorted(self._known[1].alive - {self._cluster.node})

    def home_of(self, node: int) -> Home:
        """Return the present life of a node."""
        return Home(node, self._known[1].boot_of(node))

    def is_alive(self, home: Home) -> bool:
        """Tell whether that life of a node has not ended."""
        return home.is_alive(self._known[1])

    def find(self, kind: int, identifier: int) -> Home | None:
        """Return where an object is or was, None if there is none."""
        return self._known[0].find(kind, identifier)

    def find_key(self, kind: int, key: int) -> Home | None:
        """Return where the object with this key is or was, None if there is none."""
        return self._known[0].keys.get(key_name(kind, key))

    def list_dead(self) -> list[Home]:
        """Return the lives that are over, and whose objects nobody has taken yet."""
        ipc, view = self._known
        return ipc.list_dead(view)

    def is_taker(self, dead: Home) -> bool:
        """Tell whether it is this node that takes what a dead one had."""
        return self._known[0].takers.get(dead.boot) == self.own

    def list_owners(self) -> set[int]:
        """Return what keepers call the nodes that live."""
        return {owner_of(self.home_of(node)) for node in self._known[1].alive}

    def is_lowest(self) -> bool:
        """Tell whether this is the member that does what no other one is there for."""
        return self._cluster.node == min(self._known[1].members, default=0)

    async def wait_change(self) -> None:
        """Wait until something may be different: of some changes nobody tells."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CHANGE_S):
                await self._cluster.changes.wait()

    def _propose(self, operation: str, **fields: object) -> None:
        self._cluster.propose("ipc", operation, **self.own.dump(), **fields)

    async def claim(self, kind: int, key: int) -> bool:
        """Have the object of a key here, if it is nowhere; False if there are too many."""
        if len(self._known[0].keys) >= MAX_KEYS:
            return False
        self._propose("claim", key=key_name(kind, key))
        while self.find_key(kind, key) is None and len(self._known[0].keys) < MAX_KEYS:
            await self._cluster.changes.wait()
        return self.find_key(kind, key) is not None

    async def release(self, kind: int, key: int) -> None:
        """The object of a key is not here any more; return when that is known here."""
        if self.find_key(kind, key) == self.own:
            self._propose("release", key=key_name(kind, key))
            await self._cluster.changes.wait_for(lambda: self.find_key(kind, key) != self.own)

    def remove(self, kind: int, identifier: int) -> None:
        """An object is no more."""
        if object_name(kind, identifier) in self._known[0].moved:
            self._propose("remove", object=object_name(kind, identifier))

    def begin(self, dead: Home) -> None:
        """This node is to take what a dead one had, if nobody does."""
        ipc, view = self._known
        if may_take(self.own, dead, ipc.takers, view):
            self._propose("begin", dead=dead.dump())

    def take(self, dead: Home, keys: list[str], objects: list[str]) -> None:
        """All of a dead node that could be made anew is here."""
        self._propose("take", dead=dead.dump(), keys=keys, objects=objects)
