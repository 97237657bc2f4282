"""What a cluster has only one of, beside processes: each part's service on this node."""

from __future__ import annotations

import asyncio

from ssi.node.cluster import Cluster
from ssi.node.devfs.service import Devices
from ssi.node.fifo.service import Fifos
from ssi.node.futexes import Futexes
from ssi.node.ics.ics import Ics
from ssi.node.ipc.service import Ipc
from ssi.node.launcher import Launcher
from ssi.node.process.space import ProcessSpace
from ssi.node.queues.service import Queues
from ssi.node.unix.service import UnixSockets


class Shared:
    """All of them."""

    def __init__(self, cluster: Cluster, ics: Ics, launcher: Launcher, space: ProcessSpace) -> None:
        devices = Devices(
            cluster, ics, launcher, space.asking, space.device,
            space.places.stand_ins.devices_shown,
        )  # fmt: skip
        self._parts = (
            Fifos(cluster, ics, space.asking, space.device),
            devices,
            Futexes(space.asking, ics, launcher),
            Ipc(cluster, ics, space),
            Queues(cluster, ics, launcher, space.asking, space.device),
            UnixSockets(cluster, ics, space.asking, space.device, devices.streams),
        )

    async def run(self) -> None:
        """Take part in all, once the root is mounted, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for part in self._parts:
                group.create_task(part.run())
