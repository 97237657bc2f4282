"""What goes along with a socket: who made it, which halves it has left, and bytes on their way.

native/relay.h has the file's layout, and native/messages.h how messages are among the bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import os
import socket
import struct
from pathlib import Path

from ssi.common.errors import ProtocolError
from ssi.node.smallfiles import read_bytes, write_bytes

SO_PASSRIGHTS = 83
"""Whether descriptors may be sent to a socket."""

RECEIVES, SENDS = 1, 2
"""Halves that are shut."""

_HEAD = struct.Struct("=7I")
_CREDENTIALS = struct.Struct("=iII")
_PIECE = 1 << 22


class Flag(enum.IntFlag):
    """Of the halves."""

    FAR_ENDED = 1
    NEAR_ENDED = 2
    IN_BROKEN = 4
    OUT_BROKEN = 8
    OUT_SHUT = 16
    FAR_GONE = 32
    SHUT_READS = 64
    SHUT_WRITES = 128


NONE = Flag(0)


def pass_descriptors(fd: int, *, passes: bool) -> None:
    """Have who sends descriptors to a socket succeed, or hear that they do not come; OSError."""
    with socket.socket(fileno=os.dup(fd)) as one:
        one.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, int(passes))


def path_of(folder: Path, entry: int) -> Path:
    """Return where that of a file entry is, among the images of a move."""
    return folder / f"relay-{entry}.img"


@dataclasses.dataclass(slots=True)
class Saved:
    """Of one socket."""

    flags: Flag = NONE
    uid: int = 0
    gid: int = 0
    type: int = socket.SOCK_STREAM
    send_room: int = 0
    """Bytes, as SO_SNDBUF counts them."""
    incoming: bytes = b""
    outgoing: bytes = b""

    @classmethod
    def of(cls, far: socket.socket, halves: int) -> Saved:
        """Return that of a socket that stays where it is; `halves` as shutdown() counts them."""
        options = far.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, gid = _CREDENTIALS.unpack(options)
        saved = cls(NONE, uid, gid, far.type)
        if halves & SENDS and not saved.has_datagrams:
            saved.flags = Flag.NEAR_ENDED | Flag.OUT_SHUT
        saved.take_settings(far, halves)
        return saved

    @classmethod
    def read(cls, path: Path) -> Saved:
        """Read it; raises OSError, ProtocolError."""
        data = read_bytes(path)
        if len(data) < _HEAD.size:
            raise ProtocolError(f"{path.name} is no state of a socket")
        flags, uid, gid, type_, send_room, incoming, outgoing = _HEAD.unpack_from(data)
        begin = _HEAD.size + incoming
        if len(data) != begin + outgoing:
            raise ProtocolError(f"{path.name} has {len(data)} bytes")
        carried = data[_HEAD.size : begin], data[begin:]
        return cls(Flag(flags), uid, gid, type_, send_room, *carried)

    def write(self, path: Path) -> None:
        """Write it; raises OSError."""
        sizes = len(self.incoming), len(self.outgoing)
        head = _HEAD.pack(self.flags, self.uid, self.gid, self.type, self.send_room, *sizes)
        write_bytes(path, head + self.incoming + self.outgoing)

    def take(self, near: socket.socket, halves: int) -> None:
        """Add what a socket has that was not read, and which halves of it are shut.

        Messages the keeper has taken back already: only the first of them could be looked at.
        """
        if halves & RECEIVES and not self.flags & Flag.FAR_ENDED:
            self.flags |= Flag.IN_BROKEN
        self.take_settings(near, halves)
        if self.type == socket.SOCK_STREAM:
            with contextlib.suppress(BlockingIOError):
                unread = near.recv(_PIECE, socket.MSG_PEEK | socket.MSG_DONTWAIT)
                self.incoming = unread + self.incoming

    def take_settings(self, near: socket.socket, halves: int) -> None:
        """Take what is its own: its buffer, and halves that its other end does not know of."""
        self.send_room = near.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        if self.has_datagrams:
            for half, flag in ((RECEIVES, Flag.SHUT_READS), (SENDS, Flag.SHUT_WRITES)):
                self.flags |= flag if halves & half else NONE

    def shut(self, fd: int) -> None:
        """Shut those halves of a new socket that its other end does not know of."""
        with socket.socket(fileno=os.dup(fd)) as one:
            if self.flags & Flag.SHUT_READS:
                one.shutdown(socket.SHUT_RD)
            if self.flags & Flag.SHUT_WRITES:
                one.shutdown(socket.SHUT_WR)

    @property
    def has_datagrams(self) -> bool:
        """Whether it is a socket that tells its other end nothing of its halves."""
        return self.type == socket.SOCK_DGRAM

    @property
    def is_empty(self) -> bool:
        """Whether nothing is on its way, so that the far end itself is as good."""
        return not self.incoming and not self.outgoing
