"""The supervisor's process: set up, serve, end."""

from __future__ import annotations

import asyncio
import logging
import signal
import time

from ssi.common.logline import HOST, LineFormatter
from ssi.host.cluster.control import Control
from ssi.host.cluster.nodelogs import NodeLogs
from ssi.host.cluster.spec import ClusterPlace, ClusterSpec
from ssi.host.cluster.supervisor import Supervisor
from ssi.host.net.switch import Switch
from ssi.host.uml.process import become_subreaper

logger = logging.getLogger(__name__)


async def _run(place: ClusterPlace, ready: int) -> None:
    spec = ClusterSpec.from_json(place.spec.read_text())
    async with Switch.running() as switch, asyncio.TaskGroup() as group:
        supervisor = Supervisor(spec, switch, group)
        supervisor.on_message["log"] = NodeLogs(place).hear
        control = Control(supervisor, time.time())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, control.finished.set)
        watching = group.create_task(supervisor.watch_switch())
        await control.serve(ready)
        await supervisor.crash(list(supervisor.members))
        watching.cancel()


def main(place: ClusterPlace, ready: int) -> int:
    """Run the supervisor of the cluster at `place` until the cluster ends."""
    log = logging.FileHandler(place.supervisor_log)
    log.setFormatter(LineFormatter(HOST, "supervisor"))
    logging.basicConfig(handlers=[log], level=logging.INFO)
    become_subreaper()
    try:
        asyncio.run(_run(place, ready))
    except Exception:
        logger.exception("the supervisor ends")
        return 1
    return 0
