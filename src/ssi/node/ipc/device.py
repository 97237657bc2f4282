"""Segments of System V shared memory that several nodes have, as this node's kernel has them.

By /dev/segments of image/kernel/patches/shm-in-files.patch: each is of a file of the root.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import fcntl
import os
import struct
from pathlib import Path

from ssi.common import wire
from ssi.common.wire import Message
from ssi.node.state.ipc import MAX_ID

DEVICE = Path("/dev/segments")
MOST = 4096
"""SHMMNI: so many a kernel has."""

_BACK, _MAKE, _HOLD = 0x40085301, 0x40285302, 0x40085303
_TOLD = struct.Struct("=ii6IiiQQQqqq")
_TO_MAKE = struct.Struct("=iii5IQ")
_PAIR = struct.Struct("=ii")

_RMID = 0
_WORD = 2**32 - 1
_LARGEST = 2**63 - 1
DESTROYED = 0o1000
"""SHM_DEST of its mode: it has been removed, and lasts as long as somebody has it attached."""


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """One, as it is on one node. `nattch` are the attachments there, sizes are in bytes."""

    id: int
    key: int
    mode: int
    uid: int
    gid: int
    cuid: int
    cgid: int
    held: int
    """Whether this node is its home."""
    cpid: int
    lpid: int
    size: int
    nattch: int
    inode: int
    atime: int
    dtime: int
    ctime: int

    @property
    def is_removed(self) -> bool:
        """Whether it goes with its last attachment."""
        return bool(self.mode & DESTROYED)

    @property
    def used_at(self) -> int:
        """When it was attached or detached last."""
        return max(self.atime, self.dtime)

    def dump(self) -> Message:
        """Return it as a message."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, message: Message) -> Segment:
        """Read it from a message, or raise ProtocolError."""
        least = {"key": -(2**31), "atime": -_LARGEST, "dtime": -_LARGEST, "ctime": -_LARGEST}
        most = {"id": MAX_ID, "key": 2**31 - 1} | dict.fromkeys(
            ("mode", "uid", "gid", "cuid", "cgid", "held", "cpid", "lpid"), _WORD
        )
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(
            *(
                wire.get_int(message, name, least.get(name, 0), most.get(name, _LARGEST))
                for name in names
            )
        )


class Device:
    """The kernel's side."""

    def __init__(self) -> None:
        self.fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        """Can be read from when something has changed since the last `list`."""

    def list(self) -> list[Segment]:
        """Return all that there are."""
        data = os.read(self.fd, MOST * _TOLD.size)
        return [Segment(*fields) for fields in _TOLD.iter_unpack(data)]

    def find(self, identifier: int) -> Segment | None:
        """Return one."""
        return next((one for one in self.list() if one.id == identifier), None)

    def back(self, identifier: int, file: int) -> None:
        """Put a segment of this node into a file, and hold it; waits, and raises OSError."""
        fcntl.ioctl(self.fd, _BACK, _PAIR.pack(identifier, file))

    def make(self, one: Segment, file: int) -> None:
        """Make a segment of another node here, or give it its permissions; raises OSError."""
        packed = _TO_MAKE.pack(
            one.id, file, one.key, one.mode, one.uid, one.gid, one.cuid, one.cgid, one.size
        )
        fcntl.ioctl(self.fd, _MAKE, packed)

    def hold(self, identifier: int, *, held: bool) -> None:
        """Have it stay when it is not used here; raises OSError."""
        fcntl.ioctl(self.fd, _HOLD, _PAIR.pack(identifier, held))


def remove(identifier: int) -> None:
    """Remove a segment of this kernel: at once, or with its last attachment."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.shmctl(identifier, _RMID, None) < 0 and ctypes.get_errno() != errno.EINVAL:
        raise OSError(ctypes.get_errno(), "shmctl")


def remove_all() -> None:
    """Give the files back: they keep the root mounted. Nobody has a segment attached any more."""
    if not DEVICE.exists():
        return
    device = Device()
    for one in device.list():
        device.hold(one.id, held=False)
        remove(one.id)
    os.close(device.fd)
