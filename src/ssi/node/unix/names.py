"""Names of Unix sockets on the root, which others see: image/kernel/patches/unix-names.patch."""

from __future__ import annotations

import dataclasses
import struct

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.wire import Message

MAX_INODE = 2**64 - 1

_PATH = 108
_BOUND = struct.Struct(f"=Q{_PATH}s")
SIZE = _BOUND.size
"""Bytes of a packed one."""


@dataclasses.dataclass(frozen=True, slots=True)
class SocketName:
    """Of one socket."""

    inode: int = 0
    """0 if it is bound to nothing."""
    path: bytes = b""
    """As its process has said it."""

    @classmethod
    def unpack(cls, packed: bytes) -> SocketName:
        """Return it as the kernel tells it."""
        inode, path = _BOUND.unpack(packed)
        return cls(inode, path.rstrip(b"\0")) if inode else NAMELESS

    def pack(self) -> bytes:
        """Return it as the kernel wants it."""
        return _BOUND.pack(self.inode, self.path)

    @classmethod
    def load(cls, message: Message) -> SocketName:
        """Read it from a message, or raise ProtocolError."""
        inode, path = wire.get_int(message, "inode", 0, MAX_INODE), wire.get_bytes(message, "path")
        if len(path) >= _PATH or bool(inode) != bool(path) or b"\0" in path:
            raise ProtocolError(f"a socket called {path!r:.60}")
        return cls(inode, path)

    def dump(self) -> Message:
        """Return it as a message."""
        return {"inode": self.inode, "path": wire.put_bytes(self.path)}


NAMELESS = SocketName()
