"""The clusterwide /proc of this node, put together."""

from __future__ import annotations

import logging
import os
import resource

from ssi.common.errors import SsiError
from ssi.node.cluster import Cluster
from ssi.node.ics.ics import Ics
from ssi.node.launcher import Launcher
from ssi.node.proc import files, fuse, system, sysvipc, table
from ssi.node.proc.channel import Channel
from ssi.node.proc.control import Control
from ssi.node.proc.files import Files
from ssi.node.proc.mount import mount_proc, open_device
from ssi.node.proc.own import Own
from ssi.node.proc.system import System
from ssi.node.proc.sysvipc import Sysvipc
from ssi.node.proc.table import Table
from ssi.node.proc.tree import Tree
from ssi.node.process.places import Places

logger = logging.getLogger(__name__)

KEY = "proc"
MOUNTED = "proc-mounted"
OPEN_FILES = 1 << 17
"""Two for each process of the node."""


class Proc:
    """Shows the cluster's processes here, and this node's to the others."""

    def __init__(
        self, cluster: Cluster, ics: Ics, launcher: Launcher, places: Places,
        control: Control,
    ) -> None:  # fmt: skip
        self._launcher = launcher
        self._places = places
        self._control = control
        self._table = Table(cluster, ics)
        self._files = Files(ics)
        self._system = System(self._table, Sysvipc(lambda: self._table.others, ics), ics)
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
        ics.serve(table.QUESTION, Own(places).answer)
        ics.serve(files.QUESTION, files.answer_file)
        ics.serve(system.QUESTION, system.answer_system)
        ics.serve(sysvipc.QUESTION, sysvipc.answer_tables)

    async def run(self) -> None:
        """Answer for /proc until cancelled."""
        await self._launcher.wait_connected()
        fd = self._launcher.kept.pop(KEY, None)
        mounted = self._launcher.kept.pop(MOUNTED, None)
        if mounted is not None:
            os.close(mounted)
        elif fd is not None:
            os.close(fd)  # its daemon was killed before /proc was mounted, or right behind
            fd = None
        restarted = fd is not None
        if fd is None:
            fd = open_device()
            self._launcher.keep(KEY, fd)
        channel = Channel(fd)

        async def forget(pid: int) -> None:
            await channel.forget(fuse.pack_forget(fuse.ROOT, str(pid)))

        self._places.on_move.append(forget)
        tree = Tree(
            self._table, self._files, self._system, self._places, self._control,
            channel.notify, restarted=restarted,
        )  # fmt: skip
        if restarted:
            await channel.repeat()
        else:
            try:
                await mount_proc(fd)
            except SsiError as error:
                logger.error("/proc stays this node's own: %s", error)
                return
            self._launcher.keep(MOUNTED, fd)
        await channel.run(tree.answer)
