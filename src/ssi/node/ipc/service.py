"""System V IPC, as this node takes part in it."""

from __future__ import annotations

import asyncio

from ssi.node.cluster import Cluster
from ssi.node.ics.ics import Ics
from ssi.node.ipc.calls import Calls
from ssi.node.ipc.heirs import Heirs
from ssi.node.ipc.indexes import Indexes
from ssi.node.ipc.keeper import IpcKeeper
from ssi.node.ipc.objects import Objects
from ssi.node.ipc.places import Places
from ssi.node.ipc.segments import Segments
from ssi.node.ipc.snapshots import Snapshots
from ssi.node.proc.sysvipc import Sysvipc
from ssi.node.process.space import ProcessSpace
from ssi.node.state.state import State


class Ipc:
    """Its parts, which know each other."""

    def __init__(self, cluster: Cluster, ics: Ics, space: ProcessSpace) -> None:
        self._cluster = cluster
        self._keeper = IpcKeeper()
        places = Places(cluster)
        snapshots = Snapshots()
        self._segments = Segments(cluster, places, self._keeper, space.asking, ics)
        self._objects = Objects(
            places, self._keeper, self._segments, snapshots, space.asking, ics
        )  # fmt: skip
        self._heirs = Heirs(places, self._objects, self._segments, snapshots, space.asking, ics)
        self._calls = Calls(
            places, self._objects, self._segments, snapshots,
            Indexes(Sysvipc(lambda: places.others, ics)),
            space.asking, space.listener,
        )  # fmt: skip
        self._calls.serve(space.foreign.judges)
        self._heirs.is_living = self._calls.is_undoing

    async def run(self) -> None:
        """Take part, once the root is mounted, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keeper.run())
            await self._keeper.wait_told()
            await self._cluster.wait_known()
            self._hear_changes(State(), State())
            self._cluster.on_change.append(self._hear_changes)
            self._calls.take_over()
            group.create_task(self._segments.run())

    def _hear_changes(self, before: State, now: State) -> None:
        if before.ipc is now.ipc and before.view is now.view:
            return
        self._objects.hear_changes()
        self._heirs.hear_changes()
        self._segments.look_again()
