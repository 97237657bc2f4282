"""FIFOs of the shared root, as this node takes part in them."""

from __future__ import annotations

import asyncio

from ssi.node.cluster import Cluster
from ssi.node.fifo.ends import Ends
from ssi.node.fifo.homes import Homes
from ssi.node.fifo.keeper import EndKeeper
from ssi.node.fifo.pipes import Pipes
from ssi.node.ics.ics import Ics
from ssi.node.process.asking import Asking
from ssi.node.process.device import Device
from ssi.node.state.state import State


class Fifos:
    """Its parts, which know each other."""

    def __init__(self, cluster: Cluster, ics: Ics, asking: Asking, device: Device) -> None:
        self._cluster = cluster
        self._homes = Homes(cluster)
        self._keeper = EndKeeper()
        self._ends = Ends(self._homes, asking, ics)
        self._pipes = Pipes(self._homes, self._keeper, asking, ics)
        device.serve_fifos(self._ends)

    async def run(self) -> None:
        """Take part, once the root is mounted, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keeper.run())
            await self._keeper.wait_told()
            state = await self._cluster.wait_known()
            self._hear_changes(State(), state)
            self._cluster.on_change.append(self._hear_changes)
            self._homes.look_at_all()

    def _hear_changes(self, before: State, now: State) -> None:
        if before.fifos is now.fifos and before.view is now.view:
            return
        self._homes.hear_changes()
        self._pipes.hear_changes(now)
        self._ends.hear_changes(before, now)
