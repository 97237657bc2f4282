"""Between a person's terminal and a node: commands (`ssi exec`) and consoles (`ssi console`).

Bytes only pass through. How many may be under way is between the node and the client
(common.streams), so a client that does not read stops its own command and nothing else.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from ssi.common import wire
from ssi.common.errors import NodeLost, ProtocolError
from ssi.common.line import Line
from ssi.common.wire import Message
from ssi.host.cluster.member import Member
from ssi.host.cluster.supervisor import Supervisor
from ssi.host.uml.console import BEHIND

SIGHUP = 1


class Commands:
    """Commands that run in nodes for clients."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._numbers = itertools.count(1)
        self._running: dict[int, tuple[int, Line, asyncio.Future[Message]]] = {}
        supervisor.on_message |= {
            "output": self._hear_output, "credit": self._hear_credit, "ended": self._hear_ended,
        }  # fmt: skip
        supervisor.on_loss.append(self._lose)

    def _find(
        self, member: Member, message: Message
    ) -> tuple[Line, asyncio.Future[Message]] | None:
        entry = self._running.get(wire.get_int(message, "id", 0, 2**53))
        if entry is None:
            return None  # its client has gone
        node, line, ended = entry
        if node != member.number:
            raise ProtocolError("the command runs on another node")
        return line, ended

    def _hear_output(self, member: Member, message: Message) -> None:
        if entry := self._find(member, message):
            entry[0].post(
                {"is": "output", "name": message.get("name"), "data": message.get("data")}
            )

    def _hear_credit(self, member: Member, message: Message) -> None:
        if entry := self._find(member, message):
            entry[0].post({"is": "credit", "bytes": message.get("bytes")})

    def _hear_ended(self, member: Member, message: Message) -> None:
        if (entry := self._find(member, message)) and not entry[1].done():
            entry[1].set_result(message)

    def _lose(self, node: int) -> None:
        for at, _, ended in self._running.values():
            if at == node and not ended.done():
                ended.set_exception(NodeLost(f"node{node} was lost while the command ran"))

    async def run(self, client: Line, request: Message) -> dict[str, Any]:
        """Run a client's command to its end; return its status."""
        node = wire.get_int(request, "node", 1, 127)
        member = self._supervisor.find(node)
        number = next(self._numbers)
        ended: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._running[number] = (node, client, ended)
        member.virtual.line.post({
            "is": "run", "id": number, "argv": wire.get_texts(request, "argv"),
            "ramdisk": wire.get_flag(request, "ramdisk"),
        })  # fmt: skip
        hearing = asyncio.create_task(self._pass_on(client, member, number))
        waited: set[asyncio.Future[Any]] = {ended, hearing}
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                # The client is gone, as when a terminal is: the command hears of it.
                member.virtual.line.post({"is": "signal", "id": number, "signal": SIGHUP})
                return {}
            message = ended.result()
            return {"status": message.get("status"), "why": message.get("why")}
        finally:
            hearing.cancel()
            del self._running[number]

    async def _pass_on(self, client: Line, member: Member, number: int) -> None:
        async for message in client.messages():
            kind = message.get("is")
            if kind in {"stdin", "credit", "signal"}:
                member.virtual.line.post({**message, "id": number})


async def run_console(supervisor: Supervisor, client: Line, request: Message) -> dict[str, Any]:
    """Connect `client` with a node's console until it leaves or the node dies."""
    node = wire.get_int(request, "node", 1, 127)
    member = supervisor.find(node)
    console = member.virtual.console
    behind = 0

    def show(data: bytes) -> None:
        nonlocal behind
        behind += len(data)
        if behind <= BEHIND:
            client.post({"is": "console", "data": wire.put_bytes(data)})

    def handle(message: Message) -> None:
        nonlocal behind
        kind = message.get("is")
        if kind == "type":
            console.type(wire.get_bytes(message, "data"))
        elif kind == "size":
            rows, columns = (wire.get_int(message, key, 1, 10_000) for key in ("rows", "columns"))
            member.virtual.line.post({"is": "size", "rows": rows, "columns": columns})
        elif kind == "seen":
            behind = max(0, behind - wire.get_int(message, "bytes", 1, 2**31))

    async def listen() -> None:
        async for message in client.messages():
            handle(message)

    if wire.get_flag(request, "past"):
        past = console.past
        show(past)
    console.attach(show)
    listening = asyncio.create_task(listen())
    lost = asyncio.create_task(
        supervisor.changes.wait_for(lambda: supervisor.members.get(node) is not member)
    )
    try:
        await asyncio.wait({listening, lost}, return_when=asyncio.FIRST_COMPLETED)
        return {"lost": lost.done()}
    finally:
        console.detach(show)
        listening.cancel()
        lost.cancel()
