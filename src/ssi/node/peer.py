"""Who is at the other end of a Unix socket, as the kernel knows it."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import socket
import struct

SO_PEERGROUPS = 59
"""Of the kernel's asm-generic/socket.h; Python's socket module does not know it."""

NGROUPS_MAX = 65536

_CREDENTIALS = struct.Struct("=iII")
_GROUP = struct.Struct("=I")
_FEW = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """A process, and whose it was when it connected."""

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...]


def read_peer(connection: socket.socket) -> Peer:
    """Return who has connected."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(data)
    return Peer(pid, uid, gid, _read_groups(connection))


def _read_groups(connection: socket.socket) -> tuple[int, ...]:
    for room in (_FEW, NGROUPS_MAX):
        # The C library itself: Python's getsockopt takes no more than 1024 bytes.
        groups = ctypes.create_string_buffer(room * _GROUP.size)
        size = ctypes.c_uint32(len(groups))
        failed = _libc().getsockopt(
            connection.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, groups, ctypes.byref(size)
        )
        if not failed:
            return tuple(group for (group,) in _GROUP.iter_unpack(groups.raw[: size.value]))
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
