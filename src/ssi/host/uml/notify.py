"""What a UML kernel itself tells the host: that it panics, or hangs."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import socket
import struct
from collections.abc import Callable
from pathlib import Path

MAGIC = 0xCAFEBABE
HEADER = struct.Struct("=IIiI")
"""arch/um/drivers/mconsole.h: magic, version, type, length of the data."""


class Kind(enum.IntEnum):
    """Types of notification, as in mconsole.h."""

    SOCKET = 0
    PANIC = 1
    HANG = 2
    USER = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Notification:
    """One notification."""

    kind: Kind
    text: str


def parse_notification(datagram: bytes) -> Notification | None:
    """Return what `datagram` says, None for what is no notification."""
    if len(datagram) < HEADER.size:
        return None
    magic, _, kind, length = HEADER.unpack_from(datagram)
    if magic != MAGIC or kind not in {member.value for member in Kind}:
        return None
    data = datagram[HEADER.size : HEADER.size + min(length, 512)]
    return Notification(Kind(kind), data.rstrip(b"\0\n").decode(errors="replace"))


class NotifySocket:
    """The socket that a node's kernel notifies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hear: Callable[[Notification], None] = lambda _: None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        path.unlink(missing_ok=True)
        self._socket.bind(str(path))
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def _read(self) -> None:
        try:
            notification = parse_notification(self._socket.recv(1024))
        except BlockingIOError:
            return
        if notification:
            self.hear(notification)

    def close(self) -> None:
        """Close the socket and remove its file."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self.path.unlink(missing_ok=True)
