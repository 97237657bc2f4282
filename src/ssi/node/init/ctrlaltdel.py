"""Ctrl-Alt-Del: busybox's init, PID 1, tells this daemon by SIGINT, as the kernel tells it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

from ssi.node.cluster import Cluster
from ssi.node.init.executor import make_environment
from ssi.node.init.jobs import Jobs

logger = logging.getLogger(__name__)

PID = Path("/run/ssi/ssid.pid")


class CtrlAltDel:
    """Runs the entries for it on the node where it was pressed."""

    def __init__(self, cluster: Cluster, jobs: Jobs, console: str) -> None:
        self._cluster = cluster
        self._jobs = jobs
        self._console = console
        self._pressed = asyncio.Event()

    async def run(self) -> None:
        """Run the entries each time, until cancelled."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._pressed.set)
        PID.write_text(f"{os.getpid()}\n")
        while True:
            await self._pressed.wait()
            self._pressed.clear()
            await self._run_entries()

    async def _run_entries(self) -> None:
        state = self._cluster.known
        node = self._cluster.node
        entries = [
            entry
            for entry in (state.init.entries if state else ())
            if entry.action == "ctrlaltdel" and (entry.is_of_cluster or entry.is_for(node, node))
        ]
        logger.info("ctrl-alt-del: %d entries", len(entries))
        for entry in entries:
            assert state
            key = f"ctrlaltdel.{entry.id}"
            argv = ["/bin/sh", "-c", f"exec {entry.command}"]
            environment = make_environment(node, self._console, state.init)
            await self._jobs.run(key, argv, environment)
            self._jobs.forget(key)
