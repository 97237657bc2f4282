"""/devfs, as this node takes part in it."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from ssi.common.errors import SsiError
from ssi.node.cluster import Cluster
from ssi.node.devfs import own
from ssi.node.devfs.ends import Ends
from ssi.node.devfs.keeper import DeviceKeeper
from ssi.node.devfs.lent import Lent
from ssi.node.devfs.own import Own
from ssi.node.devfs.places import Places
from ssi.node.devfs.tree import Tree
from ssi.node.ics.ics import Ics
from ssi.node.launcher import Launcher
from ssi.node.proc.channel import Channel
from ssi.node.proc.mount import mount_devices, open_device
from ssi.node.process.asking import Asking
from ssi.node.process.device import Device
from ssi.node.state.state import State

logger = logging.getLogger(__name__)

KEY = "devfs"
MOUNTED = "devfs-mounted"


class Devices:
    """Shows the devices of all nodes here, and does what others want of this node's."""

    def __init__(
        self, cluster: Cluster, ics: Ics, launcher: Launcher, asking: Asking, device: Device,
        shown: asyncio.Event,
    ) -> None:  # fmt: skip
        """`shown` is set when there is a /devfs."""
        self._cluster = cluster
        self._launcher = launcher
        places = Places()
        self._keeper = DeviceKeeper()
        self._lent = Lent(self._keeper, ics, cluster.node)
        self.streams = self._lent.streams
        self._tree = Tree(places, asking, ics, self._find_root)
        self._shown = shown
        device.serve_foreign(Ends(places, asking))
        ics.serve(own.QUESTION, Own(self._find_root).answer)

    def _find_root(self) -> Path:
        """Return /dev as the userland has it, from where this daemon is."""
        return Path(f"/proc/{self._launcher.pid}/root/dev")

    async def run(self) -> None:
        """Take part, once the root is mounted, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keeper.run())
            group.create_task(self._show())
            await self._keeper.wait_told()
            self._hear_changes(State(), await self._cluster.wait_known())
            self._cluster.on_change.append(self._hear_changes)

    def _hear_changes(self, before: State, now: State) -> None:
        if before.view is not now.view:
            self._lent.hear_changes(now)

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
        channel = Channel(fd, "/devfs")
        if restarted:
            await channel.repeat()
        else:
            try:
                await mount_devices(fd)
            except SsiError as error:
                logger.error("there is no /devfs: %s", error)
                self._shown.set()  # who waits for it is to hear that
                return
            self._launcher.keep(MOUNTED, fd)
        self._shown.set()
        await channel.run(self._tree.answer)
