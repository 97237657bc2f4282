"""One TCP connection between two daemons: options, hello, messages, end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.line import Line
from ssi.common.wire import MAX_LINE, Message
from ssi.node.ics.hello import Hello, parse_hello
from ssi.node.ics.parts import render

HELLO_S = 10.0
"""Time for TLS and hello."""

SILENCE_S = 20
"""A peer that acknowledges nothing for so long is cut off, dead or not."""

LAST_WORDS_S = 2.0
MAX_WHY = 400

HIGH_WATER = 2 * MAX_LINE

Take = Callable[[Message, int], None]
"""Takes a message and its size; raises ProtocolError for one that has no place."""


def set_options(connection: socket.socket) -> None:
    """Have the kernel send at once, and notice a peer that has gone without a word."""
    for level, option, value in (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE_S // 4),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SILENCE_S // 4),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_S * 1000),
    ):
        connection.setsockopt(level, option, value)


class Connection:
    """A connection whose TLS is done."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._line = Line(reader, writer)
        self._writer = writer
        writer.transport.set_write_buffer_limits(HIGH_WATER)
        host, self.port = writer.get_extra_info("peername")[:2]
        self.address = str(host)

    @classmethod
    async def accept(cls, come: socket.socket, context: ssl.SSLContext | None) -> Connection:
        """Return the connection over `come`; raises OSError (TLS errors are such)."""
        try:
            set_options(come)
        except OSError:
            come.close()
            raise
        reader = asyncio.StreamReader(limit=MAX_LINE)
        protocol = asyncio.StreamReaderProtocol(reader)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, come, ssl=context,
            ssl_handshake_timeout=HELLO_S if context else None,
        )  # fmt: skip
        return cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    @classmethod
    async def open(
        cls, own: socket.socket, address: tuple[str, int], context: ssl.SSLContext | None
    ) -> Connection:
        """Connect the bound socket `own` with `address`; raises OSError."""
        try:
            set_options(own)
            own.setblocking(False)
            await asyncio.get_running_loop().sock_connect(own, address)
        except BaseException:
            own.close()
            raise
        reader, writer = await asyncio.open_connection(
            sock=own, limit=MAX_LINE, ssl=context,
            server_hostname="" if context else None,
            ssl_handshake_timeout=HELLO_S if context else None,
        )  # fmt: skip
        return cls(reader, writer)

    def post(self, line: bytes) -> None:
        """Send a line without waiting; each call's credit limits how many there can be."""
        if not self._writer.is_closing():
            self._writer.write(line)

    async def drain(self) -> None:
        """Wait while much is under way."""
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    def greet(self, hello: Hello) -> None:
        """Say who we are."""
        self.post(wire.encode(hello.message()))

    async def hear_hello(self) -> Hello:
        """Return who is there; raises ProtocolError."""
        message = await self._line.receive()
        if message is None:
            raise ProtocolError("it ended the connection instead of a hello")
        return parse_hello(message)

    async def run(self, take: Take, *, answers: bool) -> None:
        """Hand each message to `take` until the end; raises ProtocolError for a wrong one.

        Whoever `answers` reads no more while the other does not read his answers. Whoever asks
        reads always, or the two could wait for each other.
        """
        while (message := await self._line.receive()) is not None:
            take(message, self._line.size)
            if answers:
                await self.drain()

    async def refuse(self, why: object) -> None:
        """Say why, and close."""
        self.post(render("refused", why=str(why)[:MAX_WHY]))
        self._writer.close()
        with contextlib.suppress(OSError):
            async with asyncio.timeout(LAST_WORDS_S):
                await self._writer.wait_closed()

    def drop(self) -> None:
        """Close at once; what has not been sent is lost."""
        self._writer.transport.abort()
