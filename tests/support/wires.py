"""Frames and wires for tests of the switch."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

from ssi.host.net.switch import Switch

BROADCAST = b"\xff" * 6
GATEWAY = bytes.fromhex("0200000000fe")
DEADLINE_S = 10


def mac(node: int) -> bytes:
    """Return the MAC address of `node` as it is on the wire."""
    return bytes([2, 0, 0, 0, 0, node])


def frame(to: bytes, sender: bytes, text: bytes = b"hello") -> bytes:
    """Return an Ethernet frame of a type reserved for experiments."""
    return to + sender + b"\x88\xb5" + text


def arp_request(sender: bytes, wanted: str) -> bytes:
    """Return a broadcast question for who has `wanted`."""
    body = bytes.fromhex("0001080006040001") + sender + bytes([192, 168, 50, sender[5]])
    return BROADCAST + sender + b"\x08\x06" + body + bytes(6) + socket.inet_aton(wanted)


async def receive(wire: socket.socket, most: int = 70000) -> bytes:
    """Return the next frame on `wire`."""
    async with asyncio.timeout(DEADLINE_S):
        return await asyncio.get_running_loop().sock_recv(wire, most)


async def receive_exactly(stream: socket.socket, count: int) -> bytes:
    """Return `count` bytes of `stream`."""
    got = b""
    while len(got) < count:
        got += await receive(stream, count - len(got))
    return got


@contextlib.asynccontextmanager
async def switched(*nodes: int) -> AsyncIterator[tuple[Switch, dict[int, socket.socket]]]:
    """A switch with a port for each of `nodes`."""
    async with Switch.running() as switch:
        with contextlib.ExitStack() as open_wires:
            wires = {n: open_wires.enter_context(await switch.attach(n)) for n in nodes}
            for wire in wires.values():
                wire.setblocking(False)
            yield switch, wires
