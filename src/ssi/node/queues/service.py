"""POSIX message queues, as this node takes part in them."""

from __future__ import annotations

import asyncio
import logging
import os

from ssi.common.errors import SsiError
from ssi.node.cluster import Cluster
from ssi.node.ics.ics import Ics
from ssi.node.launcher import Launcher
from ssi.node.proc.channel import Channel
from ssi.node.proc.mount import QUEUES, mount_queues, open_device
from ssi.node.process.asking import Asking
from ssi.node.process.device import Device
from ssi.node.queues.ends import Ends
from ssi.node.queues.heirs import Heirs
from ssi.node.queues.homes import Homes
from ssi.node.queues.keeper import QueueKeeper
from ssi.node.queues.own import Own
from ssi.node.queues.shared import Shared
from ssi.node.queues.snapshots import Snapshots
from ssi.node.queues.tree import Tree
from ssi.node.state.state import State

logger = logging.getLogger(__name__)

KEY = "mqueue"
MOUNTED = "mqueue-mounted"


class Queues:
    """Its parts, which know each other."""

    def __init__(
        self, cluster: Cluster, ics: Ics, launcher: Launcher, asking: Asking, device: Device
    ) -> None:
        self._cluster = cluster
        self._launcher = launcher
        self._keeper = QueueKeeper()
        self._homes = Homes(cluster)
        snapshots = Snapshots()
        self._shared = Shared(self._homes, self._keeper, snapshots, asking, ics)
        self._own = Own(self._homes, self._keeper, self._shared, ics)
        self._heirs = Heirs(
            self._homes, self._keeper, self._own, self._shared, snapshots, asking, ics
        )  # fmt: skip
        self._ends = Ends(self._homes, self._shared, snapshots, asking)
        self._tree = Tree(self._homes, self._ends, asking, ics)
        device.serve_queues(self._ends)

    async def run(self) -> None:
        """Take part, once the root is mounted, until cancelled."""
        await self._homes.mount()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keeper.run())
            group.create_task(self._show())
            await self._keeper.wait_told()
            self._hear_changes(State(), await self._cluster.wait_known())
            self._cluster.on_change.append(self._hear_changes)
            self._ends.take_over()
            await self._homes.look_at_all()

    def _hear_changes(self, before: State, now: State) -> None:
        if before.view is not now.view:
            self._own.hear_changes(now)
            self._shared.hear_changes()
        if before.view is not now.view or before.queues is not now.queues:
            self._heirs.hear_changes()

    async def _show(self) -> None:
        await self._launcher.wait_connected()
        fd = self._launcher.kept.pop(KEY, None)
        mounted = self._launcher.kept.pop(MOUNTED, None)
        if mounted is not None:
            os.close(mounted)
        elif fd is not None:
            os.close(fd)  # its daemon was killed before it was mounted, or right behind
            fd = None
        restarted = fd is not None
        if fd is None:
            fd = open_device()
            self._launcher.keep(KEY, fd)
        channel = Channel(fd, QUEUES)
        if restarted:
            await channel.repeat()
        else:
            try:
                await mount_queues(fd)
            except SsiError as error:
                logger.error("there is no %s: %s", QUEUES, error)
                return
            self._launcher.keep(MOUNTED, fd)
        await channel.run(self._tree.answer)
