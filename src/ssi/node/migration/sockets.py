"""What a process's sockets are connected to, as far as that keeps it where it is."""

from __future__ import annotations

import dataclasses
import os
import socket
import struct
from collections.abc import Collection, Iterator
from pathlib import Path

from ssi.node.smallfiles import read_text

NETWORK = Path("/proc/net")
"""The tables of this daemon's network name space, which is the userland's."""

_DIAG = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY = 20
_REQUEST_FLAG = 1
_SHOW = 1 | 4 | 16
"""Its name, its peer and its queues."""
_NAME, _PEER, _QUEUES, _HALVES = 0, 2, 4, 6
_NO_COOKIE = 0xFFFFFFFF
_BUFFER = 8192

_HEAD = struct.Struct("=IHHII")
_ASKED = struct.Struct("=BBHIII2I")
_TOLD = struct.Struct("=4BI2I")
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("=I")

_ESTABLISHED, _LISTENS = 1, 10
_TABLES = {"TCP": "tcp", "TCPv6": "tcp6", "UDP": "udp", "UDPv6": "udp6"}


def find_obstacle(path: Path, inode: int, own: Collection[int], *, to_leave: bool) -> str:
    """Return why the socket with `inode`, which `path` leads to, cannot come along, "" if it can.

    `own` are the process's sockets; one that is only to be saved does not leave. Raises OSError.
    """
    protocol = os.getxattr(path, "system.sockprotoname").rstrip(b"\0").decode()
    if protocol in _TABLES:
        return _describe_inet(protocol, inode)
    if protocol.startswith("UNIX"):
        return _describe_unix(ask_unix(inode), own, to_leave=to_leave)
    return f"a {protocol.lower()} socket"


def _describe_inet(protocol: str, inode: int) -> str:
    for line in read_text(NETWORK / _TABLES[protocol]).splitlines()[1:]:
        fields = line.split()
        if int(fields[9]) != inode:
            continue
        local, remote = (int(address.rpartition(":")[2], 16) for address in fields[1:3])
        name = protocol.removesuffix("v6")
        if int(fields[3], 16) == _LISTENS and name == "TCP":
            return f"a TCP socket that listens on port {local}"
        if remote:
            return f"a {name} socket from port {local} to port {remote}"
        return f"a {name} socket on port {local}"
    return ""  # neither bound nor connected


def _describe_unix(socket_: Socket, own: Collection[int], *, to_leave: bool) -> str:
    if socket_.state == _LISTENS:
        return "a Unix socket that listens"
    if not socket_.is_half(own):
        return ""
    if not to_leave:
        # Where its other end is gone nothing is lost but how that is told.
        return "a Unix socket to another process" if socket_.peer or socket_.unread else ""
    if name := socket_.name or ask_unix(socket_.peer).name:
        return f"a Unix socket connected by the name {name}"
    return ""


@dataclasses.dataclass(frozen=True, slots=True)
class Socket:
    """A Unix socket, as the kernel describes it; all zero for one that is gone."""

    kind: int = 0
    state: int = 0
    peer: int = 0
    """The other end's inode, 0 if there is none."""
    left: bool = False
    """Whether there was one that has been closed."""
    name: str = ""
    halves: int = 0
    """Those that are shut, as shutdown() counts them."""
    unread: int = 0

    def is_half(self, own: Collection[int]) -> bool:
        """Tell whether its other end is none of these, or has left something to be read.

        That may be messages without bytes; and a socket of datagrams is told of its end by sending.
        """
        if self.peer:
            return self.peer not in own
        return self.left and bool(self.unread or self.kind != socket.SOCK_STREAM)


def ask_unix(inode: int) -> Socket:
    """Return what the kernel knows of the Unix socket with `inode`."""
    asked = _ASKED.pack(
        socket.AF_UNIX, 0, 0, 0xFFFFFFFF, inode, _SHOW, _NO_COOKIE, _NO_COOKIE
    )  # fmt: skip
    head = _HEAD.pack(_HEAD.size + len(asked), _BY_FAMILY, _REQUEST_FLAG, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _DIAG) as line:
        line.send(head + asked)
        said = line.recv(_BUFFER)
    length, kind, *_ = _HEAD.unpack_from(said)
    if kind != _BY_FAMILY:
        return Socket()
    _, type_, state, *_ = _TOLD.unpack_from(said, _HEAD.size)
    found = dict(read_attributes(said[_HEAD.size + _TOLD.size : length]))
    peer = _NUMBER.unpack(found.get(_PEER, bytes(_NUMBER.size)))[0]
    return Socket(
        type_, state, peer, left=_PEER in found and not peer,
        name=os.fsdecode(found.get(_NAME, b"")).replace("\0", "@"),
        halves=found.get(_HALVES, b"\0")[0],
        unread=_NUMBER.unpack_from(found.get(_QUEUES, bytes(_NUMBER.size)))[0],
    )  # fmt: skip


def read_attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the attributes of a netlink message: kinds and data."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        yield kind, data[at + _ATTRIBUTE.size : at + length]
        at += max(length, _ATTRIBUTE.size) + 3 & ~3
