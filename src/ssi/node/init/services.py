"""What this node does for the cluster's init, once it is up."""

from __future__ import annotations

import asyncio

from ssi.node.cluster import Cluster
from ssi.node.init.ctrlaltdel import CtrlAltDel
from ssi.node.init.events import Events
from ssi.node.init.executor import Executor
from ssi.node.init.inittab import begin
from ssi.node.init.jobs import Jobs
from ssi.node.launcher import Launcher


class InitServices:
    """Entries, events and keys; `executor` is for who takes the node down."""

    def __init__(self, cluster: Cluster, launcher: Launcher, console: str) -> None:
        jobs = Jobs(launcher)
        self.executor = Executor(cluster, jobs, console)
        self._cluster = cluster
        self._events = Events(cluster, jobs, console)
        self._keys = CtrlAltDel(cluster, jobs, console)

    async def run(self) -> None:
        """Serve until cancelled; what runs then goes on."""
        async with asyncio.TaskGroup() as group:
            group.create_task(begin(self._cluster))
            group.create_task(self.executor.run())
            group.create_task(self._events.run())
            group.create_task(self._keys.run())
