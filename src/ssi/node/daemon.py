"""The node daemon: one TaskGroup with a task for each service."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from ssi.node import daemonlogs, nodefiles, standstill
from ssi.node.applets.api import Api
from ssi.node.applets.fastnode import Fastnode
from ssi.node.applets.init import InitApplets
from ssi.node.applets.migrate import Migrate
from ssi.node.applets.onall import Onall
from ssi.node.applets.onnode import Onnode
from ssi.node.applets.process import ProcessApplets
from ssi.node.applets.query import Query
from ssi.node.applets.registers import RegisterApplet
from ssi.node.applets.saved import SavedApplets
from ssi.node.boot import Boot
from ssi.node.clocks import Clocks
from ssi.node.cluster import Cluster
from ssi.node.command import forget_orphans
from ssi.node.commands import Commands
from ssi.node.console import Console
from ssi.node.corosync import Corosync
from ssi.node.facts import Facts
from ssi.node.hostline import HostLine, open_line
from ssi.node.hostlog import HostLog
from ssi.node.ics.ics import Ics
from ssi.node.init.descent import Descent
from ssi.node.init.services import InitServices
from ssi.node.launcher import Launcher
from ssi.node.leave import leave, power_off
from ssi.node.load import Loads
from ssi.node.local import LocalServer
from ssi.node.logs import NodeLog
from ssi.node.members import Members
from ssi.node.proc.control import Control
from ssi.node.proc.service import Proc
from ssi.node.process.space import ProcessSpace
from ssi.node.rootlog import RootLog
from ssi.node.runner import Runner
from ssi.node.settings import Settings
from ssi.node.shared import Shared

logger = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Names this life of the node."""


def die() -> None:
    """End the node: without corosync it is no member, and what it holds must be recovered."""
    logger.error("corosync is gone: switching off")
    power_off()


async def run(settings: Settings, log: NodeLog, corosync: Corosync, *, restarted: bool) -> None:
    """Run the node of `settings` until it is switched off."""
    host = HostLine(await open_line(settings.line))
    boot_id = BOOT_ID.read_text().strip()
    host.say("hello", node=settings.node, restarted=restarted, boot=boot_id)
    rootlog = RootLog(begin=not restarted)
    log.open([HostLog(host), rootlog])
    async with asyncio.TaskGroup() as group:
        group.create_task(daemonlogs.follow(log, at_end=restarted))
        members = Members(settings.node, host, corosync)
        members.on_gone = die
        cluster = Cluster(settings.node, boot_id, members, host)
        boot = Boot(settings, host, members, cluster, group, restarted=restarted)
        launcher = Launcher(settings.node)
        Commands(host, launcher, group)
        Console(settings.console, host)
        ics = Ics(settings.node, settings.cluster, boot_id)
        host.hear("key", ics.hear_key)
        cluster.on_change.append(lambda _, now: ics.set_members(now.view))
        space = ProcessSpace(cluster, ics, launcher)
        shared = Shared(cluster, ics, launcher, space)
        proc = Proc(
            cluster, ics, launcher, space.places, Control(space.departures, space.obstacles)
        )
        init = InitServices(cluster, launcher, settings.console)
        Runner(launcher).register(ics)
        facts = Facts(settings.cluster, cluster)
        loads = Loads(cluster, ics)
        local = LocalServer(prepare=facts.wait_known)
        for applets in (
            Query(facts), Api(facts), InitApplets(cluster), RegisterApplet(cluster),
            Onall(ics, facts), ProcessApplets(space.foreign, space.places, launcher),
            Onnode(cluster, ics, space, loads), Fastnode(loads),
            Migrate(space.departures, space.obstacles, space.members),
            SavedApplets(space.saves, space.restarts),
        ):  # fmt: skip
            applets.register(local)

        async def open_node() -> None:
            if await boot.run():
                services = (
                    launcher.run(), space.run(), forget_orphans(launcher), rootlog.run(),
                    nodefiles.tidy(cluster), proc.run(), shared.run(),
                )  # fmt: skip
                opening.extend(map(group.create_task, services))
                group.create_task(init.run())

        async def leave_node(how: str) -> None:
            members.on_gone = lambda: None
            for task in opening:
                task.cancel()
            await init.executor.close()
            await leave(host, how)

        for service in (
            standstill.watch(), host.listen(), cluster.run(), ics.run(),
            Clocks(cluster, ics).run(), local.run(),
        ):  # fmt: skip
            group.create_task(service)
        opening = [group.create_task(open_node())]
        group.create_task(Descent(cluster, init.executor, host, leave_node).run())
