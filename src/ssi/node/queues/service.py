"""POSIX message queues, as this node takes part in them."""

from __future__ import annotations

import asyncio

from ssi.node.cluster import Cluster
from ssi.node.ics.ics import Ics
from ssi.node.process.asking import Asking
from ssi.node.process.device import Device
from ssi.node.queues.ends import Ends
from ssi.node.queues.homes import Homes
from ssi.node.queues.keeper import QueueKeeper
from ssi.node.queues.own import Own
from ssi.node.state.state import State


class Queues:
    """Its parts, which know each other."""

    def __init__(self, cluster: Cluster, ics: Ics, asking: Asking, device: Device) -> None:
        self._cluster = cluster
        self._keeper = QueueKeeper()
        self._homes = Homes(cluster)
        self._ends = Ends(self._homes, asking)
        self._own = Own(self._homes, self._keeper, ics)
        device.serve_queues(self._ends)

    async def run(self) -> None:
        """Take part, once the root is mounted, until cancelled."""
        await self._homes.mount()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keeper.run())
            await self._keeper.wait_told()
            self._hear_changes(State(), await self._cluster.wait_known())
            self._cluster.on_change.append(self._hear_changes)
            self._ends.take_over()
            await self._homes.look_at_all()

    def _hear_changes(self, before: State, now: State) -> None:
        if before.view is not now.view:
            self._own.hear_changes(now)
