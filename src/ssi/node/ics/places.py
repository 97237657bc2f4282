"""Where the daemons listen, and from where they come."""

from __future__ import annotations

import dataclasses
import errno
import random
import socket
from collections.abc import Callable

from ssi.common.addresses import node_address

PORT = 329
"""IANA has given it to nobody. Below 1024, so that no user of a node listens there while its daemon
starts anew, and below 512, so that no client that takes one of the reserved ports does."""

RESERVED = range(512, 1024)
"""Only root may take these. Connections come from them, so that no user can use up our room."""


@dataclasses.dataclass(frozen=True, slots=True)
class Places:
    """Addresses and ports of all nodes' daemons."""

    address: Callable[[int], str] = node_address
    port: int = PORT
    sources: range = RESERVED

    def bind_own(self, node: int) -> socket.socket:
        """Return a socket from which `node` may connect; raises OSError."""
        own = socket.socket()
        try:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            for port in random.sample(self.sources, len(self.sources)):
                try:
                    own.bind((self.address(node), port))
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise
                else:
                    return own
            raise OSError(errno.EADDRINUSE, "no port is left")
        except BaseException:
            own.close()
            raise

    def listen(self, node: int) -> socket.socket:
        """Return a socket on which `node` listens; raises OSError."""
        listener = socket.socket()
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setblocking(False)
            listener.bind((self.address(node), self.port))
            listener.listen()
        except BaseException:
            listener.close()
            raise
        return listener
