"""Fencing: dlm_controld's agent asks here, the host kills and confirms.

dlm_controld starts `/sbin/fence_ssi` with the victim on its standard input and takes exit status 0
for a confirmed death. The agent asks this daemon over a Unix socket; the daemon asks the host.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from ssi.common.line import Line
from ssi.common.nodes import MAX_NODE
from ssi.common.wire import MAX_LINE, Message, get_flag, get_int
from ssi.node.hostline import HostLine

logger = logging.getLogger(__name__)

SOCKET = Path("/run/ssi/fence.sock")


class Fence:
    """Carries requests to the host, and its answers back."""

    def __init__(self, host: HostLine) -> None:
        self._host = host
        self._waiting: dict[int, asyncio.Future[bool]] = {}
        host.hear("fenced", self._answer)

    def _answer(self, message: Message) -> None:
        waiting = self._waiting.pop(get_int(message, "node", 1, MAX_NODE), None)
        if waiting and not waiting.done():
            waiting.set_result(get_flag(message, "dead"))

    async def confirm_death(self, node: int) -> bool:
        """Have `node` killed; True when the host says that it is dead."""
        waiting = self._waiting.get(node)
        if waiting is None:
            waiting = asyncio.get_running_loop().create_future()
            self._waiting[node] = waiting
            self._host.say("fence", node=node)
        return await asyncio.shield(waiting)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Line(reader, writer)
        async for message in line.messages():
            dead = await self.confirm_death(get_int(message, "node", 1, MAX_NODE))
            await line.send({"dead": dead})
            break
        await line.close()

    async def run(self) -> None:
        """Serve agents until cancelled."""
        SOCKET.unlink(missing_ok=True)
        old = os.umask(0o077)
        try:
            server = await asyncio.start_unix_server(self._serve, SOCKET, limit=MAX_LINE)
        finally:
            os.umask(old)
        async with server:
            await server.serve_forever()
