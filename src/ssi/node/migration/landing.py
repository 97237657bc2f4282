"""The connection of a move, beside those of ICS: only bytes, which CRIU itself may send.

Who is to receive listens for this one connection, which comes from the other daemon's reserved
ports, and shows a token of which ICS has told. What it carries is not encrypted, as the blocks and
locks of the root are not.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import socket
from collections.abc import Iterator

from ssi.common import wire
from ssi.common.wire import Message
from ssi.node.accepting import accept
from ssi.node.ics.connection import set_options
from ssi.node.ics.places import Places

logger = logging.getLogger(__name__)

CONNECT_S = 10.0
TOKEN = 32
BACKLOG = 16
UNDERWAY = 64 * 1024 * 1024
"""Bytes that may be sent and not have come. CRIU sends 26 MB and then reads as much, while they go.
They are the process's own pages, no copies."""

_SO_SNDBUFFORCE = 32
"""As asm-generic/socket.h has it; the socket module has no name for it."""


class Landing:
    """Waits for one connection of one node."""

    def __init__(self, own: int, other: int, places: Places | None = None) -> None:
        """Raises OSError."""
        self._other = other
        self._places = places or Places()
        self._token = secrets.token_bytes(TOKEN)
        self._listener = socket.create_server((self._places.address(own), 0), backlog=BACKLOG)
        self._listener.setblocking(False)

    def describe(self) -> Message:
        """Return what the other node must know."""
        return {"port": self._listener.getsockname()[1], "token": wire.put_bytes(self._token)}

    async def accept(self) -> socket.socket:
        """Return the connection; raises TimeoutError, OSError."""
        async with asyncio.timeout(CONNECT_S):
            while True:
                come, (address, port) = await accept(self._listener)
                known = address == self._places.address(self._other)
                if known and port in self._places.sources and await self._hear_token(come):
                    return come
                logger.warning("refused from %s: no connection of a move", address)
                come.close()

    async def _hear_token(self, come: socket.socket) -> bool:
        try:
            come.setblocking(False)
            set_options(come)
            token = b""
            while len(token) < TOKEN:
                data = await asyncio.get_running_loop().sock_recv(come, TOKEN - len(token))
                if not data:
                    break
                token += data
        except OSError:
            return False
        except BaseException:
            come.close()
            raise
        return hmac.compare_digest(token, self._token)

    def close(self) -> None:
        """Wait for nobody."""
        self._listener.close()


@contextlib.contextmanager
def landing(own: int, other: int) -> Iterator[Landing]:
    """Be ready for a connection from another node; raises OSError."""
    one = Landing(own, other)
    try:
        yield one
    finally:
        one.close()


async def connect(
    own: int, other: int, landing: Message, places: Places | None = None
) -> socket.socket:
    """Return a connection to the landing that another node has described.

    Raises ProtocolError, OSError, TimeoutError.
    """
    places = places or Places()
    port, token = wire.get_int(landing, "port", 1, 65535), wire.get_bytes(landing, "token")
    connection = places.bind_own(own)
    try:
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_S):
            await loop.sock_connect(connection, (places.address(other), port))
            set_options(connection)
            await loop.sock_sendall(connection, token)
        # As CRIU wants it.
        connection.setblocking(True)
        with contextlib.suppress(PermissionError):  # only root may
            connection.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, UNDERWAY)
    except BaseException:
        connection.close()
        raise
    return connection
