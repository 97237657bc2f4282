"""The one process space, as this node takes part in it."""

from __future__ import annotations

import asyncio

from ssi.node.cluster import Cluster
from ssi.node.ics.ics import Ics
from ssi.node.launcher import Launcher
from ssi.node.migration.arrivals import Arrivals
from ssi.node.migration.barrier import Barrier
from ssi.node.migration.departures import Departures
from ssi.node.migration.files import Files
from ssi.node.migration.members import Members
from ssi.node.migration.obstacles import Obstacles
from ssi.node.migration.pagers import Pagers
from ssi.node.migration.restarts import Restarts
from ssi.node.migration.saves import Saves
from ssi.node.process.asking import Asking
from ssi.node.process.attributes import Attributes
from ssi.node.process.bodies import Bodies
from ssi.node.process.device import Device
from ssi.node.process.family import Family
from ssi.node.process.foreign import Foreign
from ssi.node.process.ghosts import Ghosts
from ssi.node.process.listener import Listener
from ssi.node.process.pidfds import Pidfds
from ssi.node.process.places import Places
from ssi.node.process.standins import StandIns
from ssi.node.relay.relays import Relays


class ProcessSpace:
    """Its parts, which know each other."""

    def __init__(self, cluster: Cluster, ics: Ics, launcher: Launcher) -> None:
        self.asking = Asking(cluster, ics)
        self._cluster = cluster
        self._launcher = launcher
        stand_ins = StandIns(cluster.node, launcher)
        self.device = device = Device()
        self.ghosts = Ghosts(cluster, ics, self.asking, launcher)
        self.bodies = Bodies(cluster, ics, self.asking, launcher, stand_ins, device)
        self.places = Places(cluster.node, self.ghosts, self.bodies, stand_ins)
        self.foreign = Foreign(cluster, self.asking, launcher, self.places, ics)
        self.listener = Listener(self.foreign.judge)
        Attributes(self.foreign, ics)
        self._barrier = Barrier()
        family = Family(self.asking, self.places, ics)
        self._relays = relays = Relays(self.asking, self.bodies)
        self._pagers = pagers = Pagers(cluster, self.places)
        self._arrivals = Arrivals(family, device, relays, self._barrier, pagers, ics)
        self.obstacles = Obstacles(self.places, self.foreign, ics)
        files = Files(self.places, device, relays)
        self.departures = Departures(
            self.foreign, family, files, self._barrier, self.obstacles, pagers, ics
        )
        self.saves = Saves(self.foreign, self.places, self._barrier, self.obstacles, pagers, ics)
        self.restarts = Restarts(self.foreign, self.asking, self.places, self._barrier, ics)
        self.members = Members(cluster, self.asking, self.places, ics)
        Pidfds(self.foreign, self.asking, self.places, device, ics)

    async def run(self) -> None:
        """Take part, once the root is mounted, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.listener.run(self._launcher))
            await self.bodies.run()
            group.create_task(self._relays.run())
            self._pagers.take_over()
            await self._arrivals.take_over()
            await self.departures.take_over()
            moves = self._arrivals.moves | self.departures.moves
            await self._relays.settle_others(moves)
            group.create_task(self._barrier.run())
            state = await self._cluster.wait_known()
            for node in state.view.alive - {self._cluster.node}:
                group.create_task(self.ghosts.hold(node))
