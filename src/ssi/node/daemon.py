"""The node daemon: one TaskGroup with a task for each service."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from ssi.node.applets.api import Api
from ssi.node.applets.query import Query
from ssi.node.boot import Boot
from ssi.node.cluster import Cluster
from ssi.node.commands import Commands
from ssi.node.facts import Facts
from ssi.node.fence import Fence
from ssi.node.hostline import HostLine, open_line
from ssi.node.leave import leave, power_off
from ssi.node.local import LocalServer
from ssi.node.login import Login
from ssi.node.members import Members
from ssi.node.settings import Settings

logger = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Names this life of the node."""


def die() -> None:
    """End the node: without corosync it is no member, and what it holds must be recovered."""
    logger.error("corosync is gone: switching off")
    power_off()


async def run(settings: Settings, *, restarted: bool) -> None:
    """Run the node of `settings` until it is switched off."""
    host = HostLine(await open_line(settings.line))
    boot_id = BOOT_ID.read_text().strip()
    host.say("hello", node=settings.node, restarted=restarted, boot=boot_id)
    async with asyncio.TaskGroup() as group:
        members = Members(settings.node, host)
        members.on_gone = die
        cluster = Cluster(settings.node, boot_id, members, host)
        boot = Boot(settings, host, members, cluster, group, restarted=restarted)
        Commands(host, group)
        facts = Facts(settings.cluster, cluster)
        local = LocalServer(prepare=facts.wait_known)
        Query(facts).register(local)
        Api(facts).register(local)
        login = Login(settings.console, host)
        leaving: list[asyncio.Task[None]] = []

        def hear_leave(_: object) -> None:
            if not leaving:
                members.on_gone = lambda: None
                for task in opening:
                    task.cancel()
                leaving.append(group.create_task(leave(host)))

        async def open_node() -> None:
            if await boot.run():
                await login.run()

        host.hear("leave", hear_leave)
        group.create_task(host.listen())
        group.create_task(Fence(host).run())
        group.create_task(cluster.run())
        group.create_task(local.run())
        opening = [group.create_task(open_node())]
