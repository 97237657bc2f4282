"""A connection that carries messages: an asyncio stream with the wire's lines on it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping

from ssi.common import wire
from ssi.common.errors import ProtocolError

logger = logging.getLogger(__name__)

LAST_WORDS_S = 2.0


class Line:
    """Sends and receives messages. One task may receive, any may send."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.size = 0
        """Bytes of the message that was received last."""

    def post(self, message: Mapping[str, object]) -> None:
        """Send `message` without waiting; for small ones that are few."""
        if not self._writer.is_closing():
            self._writer.write(wire.encode(message))

    def waiting(self) -> int:
        """Return how many bytes wait to be sent."""
        return self._writer.transport.get_write_buffer_size()

    async def send(self, message: Mapping[str, object]) -> None:
        """Send `message`, and wait while too much is under way."""
        self.post(message)
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    async def receive(self) -> wire.Message | None:
        """Return the next message, None at the end; raise ProtocolError for what is none."""
        try:
            line = b"\n"
            while line == b"\n":  # a restarted daemon ends its predecessor's last line with one
                line = await self._reader.readuntil(b"\n")
        except (asyncio.IncompleteReadError, ConnectionError, OSError):
            return None
        except asyncio.LimitOverrunError as error:
            await self._reader.read(error.consumed)
            raise ProtocolError(f"a line of over {wire.MAX_LINE} bytes") from error
        self.size = len(line)
        return wire.decode(line)

    async def messages(self) -> AsyncIterator[wire.Message]:
        """Yield messages until the end. What is none is logged and left out."""
        while True:
            try:
                message = await self.receive()
            except ProtocolError as error:
                logger.warning("refused: %s", error)
                continue
            if message is None:
                return
            yield message

    async def close(self) -> None:
        """Close the connection; what was sent still arrives.

        A Unix socket that is closed with something unread in it is reset, and its peer then loses
        our last words; so read to the end of his first.
        """
        # Whoever was receiving and has just been cancelled lets go of the reader in this turn.
        await asyncio.sleep(0)
        with contextlib.suppress(OSError, TimeoutError):
            self._writer.write_eof()
            async with asyncio.timeout(LAST_WORDS_S):
                while await self._reader.read(wire.MAX_LINE):
                    pass
        self._writer.close()
        with contextlib.suppress(ConnectionError, OSError):
            await self._writer.wait_closed()
