"""Which Unix sockets of this node are bound to files of the root, as the kernel tells."""

from __future__ import annotations

import dataclasses
import os
import socket
import struct
from collections.abc import Iterator

from ssi.node.migration.sockets import read_attributes
from ssi.node.root import SYSROOT

_DIAG = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY = 20
_DUMP = 1 | 0x300
_SHOW_FILE = 2
_FILE = 1
_ALL_STATES = 0xFFFFFFFF
_BUFFER = 65536

_HEAD = struct.Struct("=IHHII")
_ASKED = struct.Struct("=BBHIII2I")
_TOLD = struct.Struct("=4BI2I")
_PLACE = struct.Struct("=II")

ESTABLISHED, CLOSED, LISTENS = 1, 7, 10


@dataclasses.dataclass(frozen=True, slots=True)
class Bound:
    """One of them."""

    kind: int
    state: int


def find_bound(inode: int) -> Bound | None:
    """Return what is bound to a file of the root; raises OSError.

    What a listening socket has accepted bears its name as well.
    """
    device = SYSROOT.stat().st_dev
    wanted = inode & 0xFFFFFFFF, os.major(device) << 20 | os.minor(device)
    found = [bound for bound, place in _list_bound() if place == wanted]
    listening = [bound for bound in found if bound.state == LISTENS]
    return next(iter(listening or found), None)


def _list_bound() -> Iterator[tuple[Bound, tuple[int, int]]]:
    asked = _ASKED.pack(socket.AF_UNIX, 0, 0, _ALL_STATES, 0, _SHOW_FILE, 0, 0)
    head = _HEAD.pack(_HEAD.size + len(asked), _BY_FAMILY, _DUMP, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _DIAG) as line:
        line.send(head + asked)
        while True:
            said = line.recv(_BUFFER)
            at = 0
            while at + _HEAD.size <= len(said):
                length, kind, *_ = _HEAD.unpack_from(said, at)
                if kind != _BY_FAMILY:
                    return
                yield from _read_one(said[at + _HEAD.size : at + length])
                at += length + 3 & ~3


def _read_one(told: bytes) -> Iterator[tuple[Bound, tuple[int, int]]]:
    _, type_, state, *_ = _TOLD.unpack_from(told)
    place = dict(read_attributes(told[_TOLD.size :])).get(_FILE)
    if place:
        number, device = _PLACE.unpack_from(place)
        yield Bound(type_, state), (number, device)
