"""One direction of a call that goes on: parts in order, no more under way than there is credit."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Mapping
from typing import Protocol

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.streams import Credit
from ssi.common.wire import MAX_LINE, Message

WINDOW = MAX_LINE
"""Bytes of parts, as they are on the wire, that may wait at a receiver for being used."""

_FOREVER = 2**62


class Outlet(Protocol):
    """Where lines go."""

    def post(self, line: bytes) -> None:
        """Send `line` without waiting; when the connection is gone, nowhere."""

    async def drain(self) -> None:
        """Wait while too much is under way."""


class Nowhere:
    """An outlet with nobody behind it."""

    def post(self, line: bytes) -> None:
        """Send nothing."""

    async def drain(self) -> None:
        """Nothing is under way."""


def render(kind: str, **fields: object) -> bytes:
    """Return a line, or raise ProtocolError if it is too long."""
    line = wire.encode({"is": kind, **fields})
    if len(line) > MAX_LINE:
        raise ProtocolError(f"a message of {len(line)} bytes; {MAX_LINE} are the most")
    return line


class Sender:
    """Sends the parts of one direction."""

    def __init__(self, number: int, outlet: Outlet) -> None:
        self._number = number
        self._outlet = outlet
        self._credit = Credit(WINDOW)
        self._given = WINDOW
        self._ended = False

    async def send(self, body: Mapping[str, object]) -> None:
        """Send a part; waits while the other side does not use what it has got."""
        line = render("part", id=self._number, body=body)
        await self._credit.take(len(line))
        if not self._ended:
            self._given -= len(line)
            self._outlet.post(line)
            await self._outlet.drain()

    def add(self, count: int) -> None:
        """The other side has used `count` bytes; raises ProtocolError if so many were not sent."""
        self._given += count
        if self._given > WINDOW:
            raise ProtocolError("credit for more than was sent")
        self._credit.add(count)

    def finish(self) -> None:
        """Send no more parts, and say so."""
        if not self._ended:
            self._ended = True
            self._outlet.post(render("finish", id=self._number))

    def end(self) -> None:
        """Whoever still sends need not wait: nobody is interested any more."""
        self._ended = True
        self._credit.add(_FOREVER)


class Receiver:
    """Keeps the parts of one direction until they are used."""

    def __init__(self, number: int, outlet: Outlet) -> None:
        self._number = number
        self._outlet = outlet
        self._parts: collections.deque[tuple[Message, int]] = collections.deque()
        self._free = WINDOW
        self._ended = False
        self._more = asyncio.Event()

    def put(self, body: Message, size: int) -> None:
        """Take a part that came in a line of `size` bytes, or raise ProtocolError."""
        if self._ended:
            raise ProtocolError("a part behind the last")
        self._free -= size
        if self._free < 0:
            raise ProtocolError("more parts than there was credit for")
        self._parts.append((body, size))
        self._more.set()

    def end(self) -> None:
        """No more parts will come."""
        self._ended = True
        self._more.set()

    async def receive(self) -> Message | None:
        """Return the next part, None behind the last."""
        while not self._parts:
            if self._ended:
                return None
            self._more.clear()
            await self._more.wait()
        body, size = self._parts.popleft()
        self._free += size
        if not self._ended:
            self._outlet.post(render("credit", id=self._number, bytes=size))
        return body
