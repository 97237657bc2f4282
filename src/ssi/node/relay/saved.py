"""What goes along with a socket: who made it, which halves it has left, and bytes on their way.

native/relay.h has the file's layout.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import socket
import struct
from pathlib import Path

from ssi.common.errors import ProtocolError

SO_PASSRIGHTS = 83
"""Whether descriptors may be sent to a socket."""

RECEIVES, SENDS = 1, 2
"""Halves that are shut."""

_HEAD = struct.Struct("=5I")
_CREDENTIALS = struct.Struct("=iII")
_PIECE = 1 << 22


class Flag(enum.IntFlag):
    """Of the halves."""

    FAR_ENDED = 1
    NEAR_ENDED = 2
    IN_BROKEN = 4
    OUT_BROKEN = 8
    OUT_SHUT = 16


NONE = Flag(0)


def path_of(folder: Path, entry: int) -> Path:
    """Return where that of a file entry is, among the images of a move."""
    return folder / f"relay-{entry}.img"


@dataclasses.dataclass(slots=True)
class Saved:
    """Of one socket."""

    flags: Flag = NONE
    uid: int = 0
    gid: int = 0
    incoming: bytes = b""
    outgoing: bytes = b""

    @classmethod
    def of(cls, far: socket.socket, halves: int) -> Saved:
        """Return that of a socket that stays where it is; `halves` as shutdown() counts them."""
        options = far.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, gid = _CREDENTIALS.unpack(options)
        flags = Flag.NEAR_ENDED | Flag.OUT_SHUT if halves & SENDS else NONE
        return cls(flags, uid, gid)

    @classmethod
    def read(cls, path: Path) -> Saved:
        """Read it; raises OSError, ProtocolError."""
        data = path.read_bytes()
        if len(data) < _HEAD.size:
            raise ProtocolError(f"{path.name} is no state of a socket")
        flags, uid, gid, incoming, outgoing = _HEAD.unpack_from(data)
        begin = _HEAD.size + incoming
        if len(data) != begin + outgoing:
            raise ProtocolError(f"{path.name} has {len(data)} bytes")
        return cls(Flag(flags), uid, gid, data[_HEAD.size : begin], data[begin:])

    def write(self, path: Path) -> None:
        """Write it; raises OSError."""
        head = _HEAD.pack(self.flags, self.uid, self.gid, len(self.incoming), len(self.outgoing))
        path.write_bytes(head + self.incoming + self.outgoing)

    def take(self, near: socket.socket, halves: int) -> None:
        """Add what a socket has that was not read, and which halves of it are shut."""
        if halves & RECEIVES and not self.flags & Flag.FAR_ENDED:
            self.flags |= Flag.IN_BROKEN
        with contextlib.suppress(BlockingIOError):
            unread = near.recv(_PIECE, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            self.incoming = unread + self.incoming

    @property
    def is_empty(self) -> bool:
        """Whether nothing is on its way, so that the far end itself is as good."""
        return not self.incoming and not self.outgoing
