"""Daemons' internode communication on loopback, without TLS where Python lacks it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import socket
import sys
from collections.abc import AsyncIterator

from ssi.common.wire import MAX_LINE, Message, put_bytes
from ssi.node.ics.ics import Ics
from ssi.node.ics.places import Places
from ssi.node.ics.secure import KEY_BYTES, Security, make_security
from ssi.node.state.view import Node, NodeState, View

CLUSTER = "small"
KEY = b"k" * KEY_BYTES
UNRESERVED = range(1024, 65536)
WITHIN_S = 10.0


def address(node: int) -> str:
    """Return the address of `node` on loopback."""
    return f"127.0.50.{node}"


def boot(node: int) -> str:
    """Return the name of the life of `node`."""
    return f"boot-of-{node}"


def view_of(*nodes: int) -> View:
    """Return a view with these nodes."""
    return View(nodes={n: Node(NodeState.UP, boot(n), 0.0) for n in nodes})


def free_port() -> int:
    """Return a port that is free on all of loopback."""
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        return int(probe.getsockname()[1])


def no_security(_: bytes, __: str) -> Security:
    """Return no protection: what is tested is what comes behind it."""
    return Security()


security = make_security if sys.version_info >= (3, 13) else no_security


@dataclasses.dataclass
class Several:
    """Several daemons' parts in one process."""

    places: Places
    ics: dict[int, Ics]
    tasks: dict[int, asyncio.Task[None]]

    async def restart(self, node: int) -> None:
        """Have the daemon of `node` end and begin anew, knowing nothing."""
        await self.stop(node)
        await self.start(node)

    async def stop(self, node: int) -> None:
        """End the daemon of `node`."""
        task = self.tasks.pop(node)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def start(self, node: int) -> None:
        """Begin the daemon of `node`; all know of all."""
        ics = Ics(node, CLUSTER, boot(node), places=self.places, secure=security)
        self.ics[node] = ics
        ics.hear_key({"key": put_bytes(KEY)})
        self.tasks[node] = asyncio.create_task(ics.run())
        await ics.ask(node, "ping", within_s=WITHIN_S)
        ics.set_members(view_of(*self.ics))

    def show(self, *nodes: int) -> None:
        """Have all see a view of these nodes."""
        for ics in self.ics.values():
            ics.set_members(view_of(*nodes))


@contextlib.asynccontextmanager
async def running(count: int) -> AsyncIterator[Several]:
    """Run nodes 1 to `count`."""
    several = Several(Places(address, free_port(), UNRESERVED), {}, {})
    try:
        for node in range(1, count + 1):
            await several.start(node)
        several.show(*several.ics)
        yield several
    finally:
        for node in list(several.tasks):
            await several.stop(node)


class Stranger:
    """Somebody who writes to a daemon what he likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    def write(self, data: bytes) -> None:
        """Send bytes."""
        self.writer.write(data)

    def say(self, **fields: object) -> None:
        """Send a message."""
        self.write(json.dumps(fields).encode() + b"\n")

    def greet(self, as_node: int, **fields: object) -> None:
        """Say a hello as a node, with other fields than it should have."""
        self.say(**{"is": "hello", "version": 1, "cluster": CLUSTER, "node": as_node,
                    "boot": boot(as_node), **fields})  # fmt: skip

    async def read(self) -> Message | None:
        """Return the next message, None at the end."""
        async with asyncio.timeout(WITHIN_S):
            try:
                line = await self._reader.readline()
            except ConnectionError:
                return None
        return dict(json.loads(line)) if line else None

    async def wait_end(self) -> list[Message]:
        """Wait until the other side closes; return what it said before."""
        said = []
        while (message := await self.read()) is not None:
            said.append(message)
        return said


@contextlib.asynccontextmanager
async def stranger(several: Several, to: int, *, at: int) -> AsyncIterator[Stranger]:
    """Connect to node `to` from the address of node `at`."""
    own = several.places.bind_own(at)
    own.setblocking(False)
    await asyncio.get_running_loop().sock_connect(own, (address(to), several.places.port))
    context = security(KEY, f"node{at}").open
    reader, writer = await asyncio.open_connection(
        sock=own, limit=MAX_LINE, ssl=context, server_hostname="" if context else None
    )
    try:
        yield Stranger(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
