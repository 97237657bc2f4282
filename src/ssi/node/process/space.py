"""The one process space, as this node takes part in it."""

from __future__ import annotations

import asyncio

from ssi.node.cluster import Cluster
from ssi.node.ics.ics import Ics
from ssi.node.launcher import Launcher
from ssi.node.process.asking import Asking
from ssi.node.process.attributes import Attributes
from ssi.node.process.bodies import Bodies
from ssi.node.process.device import Device
from ssi.node.process.foreign import Foreign
from ssi.node.process.ghosts import Ghosts
from ssi.node.process.listener import Listener
from ssi.node.process.pidfds import Pidfds
from ssi.node.process.places import Places
from ssi.node.process.standins import StandIns


class ProcessSpace:
    """Its parts, which know each other."""

    def __init__(self, cluster: Cluster, ics: Ics, launcher: Launcher) -> None:
        self.asking = Asking(cluster, ics)
        self._cluster = cluster
        self._launcher = launcher
        stand_ins = StandIns(cluster.node, launcher)
        self.ghosts = Ghosts(cluster, ics, self.asking, launcher)
        self.bodies = Bodies(cluster, ics, self.asking, launcher, stand_ins, Device())
        self.places = Places(cluster.node, self.ghosts, self.bodies, stand_ins)
        self.foreign = Foreign(cluster, self.asking, launcher, self.places, ics)
        Attributes(self.foreign, ics)
        self._pidfds = Pidfds(self.foreign, self.asking, self.places, stand_ins, ics)

    async def run(self) -> None:
        """Take part, once the root is mounted, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(Listener(self.foreign.judge).run(self._launcher))
            await self.bodies.run()
            await self._pidfds.take_over()
            state = await self._cluster.wait_known()
            for node in state.view.alive - {self._cluster.node}:
                group.create_task(self.ghosts.hold(node))
