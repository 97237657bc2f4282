"""The supervisor's socket: one request a connection, its events, its answer."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from ssi.common import wire
from ssi.common.errors import ProtocolError, SsiError
from ssi.common.line import Line
from ssi.common.nodes import MAX_NODE
from ssi.common.wire import Message
from ssi.host.cluster.relays import Commands, run_console
from ssi.host.cluster.supervisor import LEAVE_S, Supervisor
from ssi.host.net.faults import Faults

logger = logging.getLogger(__name__)

Answer = dict[str, Any]

BEGIN_S = 10.0
"""Within this time a cluster must be told what to start."""


class Control:
    """Serves requests to one supervisor."""

    def __init__(self, supervisor: Supervisor, started: float) -> None:
        self._supervisor = supervisor
        self._started = started
        self._begun = False
        self._commands = Commands(supervisor)
        self.finished = asyncio.Event()
        """Set when the cluster is to end."""
        supervisor.on_end = self.finished.set
        self._requests: dict[str, Callable[[Line, Message], Awaitable[Answer]]] = {
            "start": self._start, "add": self._add, "rm": self._rm, "stop": self._stop,
            "status": self._status, "exec": self._commands.run, "console": self._console,
            "net": self._net,
        }  # fmt: skip

    async def serve(self, ready: int) -> None:
        """Serve until the cluster has ended; write a byte to descriptor `ready` once it can be."""
        path = self._supervisor.place.control
        server = await asyncio.start_unix_server(self._serve_one, path, limit=wire.MAX_LINE)
        path.chmod(0o600)
        os.write(ready, b"1")
        os.close(ready)
        # Whoever started us may have died before he could say what for.
        asyncio.get_running_loop().call_later(BEGIN_S, self._end_unless_begun)
        async with server:
            await self.finished.wait()

    def _end_unless_begun(self) -> None:
        if not self._begun:
            self.finished.set()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Line(reader, writer)
        try:
            _check_peer(writer.get_extra_info("socket"))
            request = await line.receive()
            if request is not None:
                await self._answer(line, request)
        except SsiError as error:
            await line.send(wire.error_message(error))
        finally:
            await line.close()

    async def _answer(self, line: Line, request: Message) -> None:
        name = wire.get_text(request, "do")
        if name not in self._requests:
            raise ProtocolError(f"unknown request {name!r:.40}")
        answer = await self._requests[name](line, request)
        await line.send({"is": "done", **answer})

    # -- requests ------------------------------------------------------------------------------

    async def _boot(self, line: Line, request: Message) -> Answer:
        """Start nodes while the client waits; if it goes (Ctrl-C), so do they."""
        nodes = wire.get_ints(request, "nodes", 1, MAX_NODE)
        new = sorted(set(nodes) - self._supervisor.members.keys())

        def report(node: int, phase: str) -> None:
            line.post({"is": "phase", "node": node, "phase": phase})

        booting = asyncio.create_task(self._supervisor.start(new, report))
        leaving = asyncio.create_task(line.receive())
        try:
            await asyncio.wait({booting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not booting.done():
                booting.cancel()
            await asyncio.wait({booting})
            if not booting.cancelled():
                booting.result()
        finally:
            leaving.cancel()
        return {"nodes": new, "cancelled": booting.cancelled(), "notes": self._supervisor.notes}

    async def _start(self, line: Line, request: Message) -> Answer:
        started = False
        self._begun = True
        try:
            answer = await self._boot(line, request)
            started = not answer["cancelled"]
            return answer
        finally:
            if not started:
                self.finished.set()

    async def _add(self, line: Line, request: Message) -> Answer:
        return await self._boot(line, request)

    async def _rm(self, _: Line, request: Message) -> Answer:
        nodes = wire.get_ints(request, "nodes", 1, MAX_NODE)
        for node in nodes:
            self._supervisor.find(node)
        await self._supervisor.crash(nodes)
        self._finish_if_empty()
        return {"nodes": sorted(nodes)}

    def _finish_if_empty(self) -> None:
        if not self._supervisor.members:
            self.finished.set()

    async def _stop(self, _: Line, request: Message) -> Answer:
        within_s = wire.get_int(request, "within_s", 0, 3600) if "within_s" in request else LEAVE_S
        killed = await self._supervisor.stop(within_s=within_s)
        self.finished.set()
        return {"killed": killed}

    async def _status(self, _: Line, __: Message) -> Answer:
        members = sorted(self._supervisor.members.items())
        return {
            "id": self._supervisor.spec.id,
            "started": self._started,
            "nodes": [member.row() for _, member in members],
        }

    async def _console(self, line: Line, request: Message) -> Answer:
        return await run_console(self._supervisor, line, request)

    async def _net(self, _: Line, request: Message) -> Answer:
        if "faults" in request:
            faults = Faults.from_json(wire.get_object(request, "faults"))
            await self._supervisor.apply_faults(faults)
        return {"faults": self._supervisor.faults.to_json()}


def _check_peer(peer: socket.socket) -> None:
    """Refuse other users than ours and root; the socket's folder does so too."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    if uid not in {0, os.getuid()}:
        raise SsiError("not your cluster")
