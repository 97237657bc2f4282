"""The serial line to the host's supervisor: who hears what comes, and what is said.

It is a wire of its own, so that admission and `ssi exec` work when the network does not. A real
machine has none; there ssh does these things.
"""

from __future__ import annotations

import asyncio
import logging
import os
import termios
import tty
from collections.abc import Callable, Mapping

from ssi.common.errors import ProtocolError
from ssi.common.line import Line
from ssi.common.wire import MAX_LINE, Message, get_text

logger = logging.getLogger(__name__)

Hearer = Callable[[Message], None]


def _open_raw(path: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    tty.setraw(fd, termios.TCSANOW)
    return fd


async def open_line(path: str) -> Line:
    """Open the serial line at `path`."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MAX_LINE)
    protocol = asyncio.StreamReaderProtocol(reader)
    await loop.connect_read_pipe(lambda: protocol, os.fdopen(_open_raw(path), "rb", 0))
    transport, flow = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(_open_raw(path), "wb", 0)
    )
    writer = asyncio.StreamWriter(transport, flow, reader, loop)
    # A daemon that died in the middle of a line left it open.
    writer.write(b"\n")
    return Line(reader, writer)


class HostLine:
    """Hands each message of the host to the hearer of its kind."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._hearers: dict[str, Hearer] = {}

    def hear(self, kind: str, hearer: Hearer) -> None:
        """Call `hearer` with each message of `kind`. It must not block."""
        self._hearers[kind] = hearer

    def say(self, kind: str, **fields: object) -> None:
        """Tell the host something small."""
        self._line.post({"is": kind, **fields})

    def waiting(self) -> int:
        """Return how many bytes wait for the line."""
        return self._line.waiting()

    async def stream(self, message: Mapping[str, object]) -> None:
        """Send the host something large, as fast as the line takes it."""
        await self._line.send(message)

    async def listen(self) -> None:
        """Hand out messages until cancelled. A bad one is refused and logged."""
        async for message in self._line.messages():
            try:
                kind = get_text(message, "is")
                if kind not in self._hearers:
                    raise ProtocolError(f"unknown kind {kind!r:.40}")
                self._hearers[kind](message)
            except ProtocolError as error:
                logger.warning("refused from the host: %s", error)
