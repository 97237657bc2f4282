"""Who is to be notified of a message in another node's queue, and how (mq_notify)."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import socket
import struct

from ssi.node.process.caller import read_caller
from ssi.node.process.device import get_descriptor
from ssi.node.process.signals import deliver

SIGNAL, THREAD = 0, 2
"""SIGEV_SIGNAL and so on: 1 is none."""

FROM_QUEUE = -3
"""SI_MESGQ"""

COME, REMOVED = b"\1", b"\2"
"""The last byte of what a thread of the C library waits for."""

_EVENT = struct.Struct("=IIQ32s")


@dataclasses.dataclass(frozen=True, slots=True)
class Note:
    """One of them."""

    number: int
    """Of the order that waits for it."""
    pid: int
    how: int
    signal: int
    value: int
    cookie: str
    port: int
    """Of the netlink socket on which the C library's thread waits."""

    def dump(self) -> dict[str, object]:
        """Return it for a file."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, fields: dict[str, object]) -> Note:
        """Read it from a file."""
        return cls(**fields)  # type: ignore[arg-type]

    def tell(self, *, comes: bool) -> None:
        """Tell the process that a message has come, or its thread that none is waited for."""
        with contextlib.suppress(OSError):
            if self.how == SIGNAL and comes and self.signal:
                value = ctypes.c_int64(self.value).value
                deliver(self.pid, self.signal, 0, 0, value, code=FROM_QUEUE)
            elif self.how == THREAD:
                cookie = bytes.fromhex(self.cookie)[:-1] + (COME if comes else REMOVED)
                with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as line:
                    line.sendto(cookie, socket.MSG_DONTWAIT, (self.port, 0))


def read_note(event: bytes, thread: int, number: int) -> Note:
    """Return what a caller wants (struct cuse_mq_event); raises OSError."""
    how, signal, value, cookie = _EVENT.unpack(event)
    pid = read_caller(thread).pid
    port = _find_port(pid, signal) if how == THREAD else 0
    return Note(number, pid, how, signal, value, cookie.hex(), port)


def _find_port(pid: int, fd: int) -> int:
    process = os.pidfd_open(pid)
    try:
        with socket.socket(fileno=get_descriptor(process, fd)) as line:
            # The C library leaves it without one: its own kernel goes by the descriptor.
            if not line.getsockname()[0]:
                line.bind((0, 0))
            port: int = line.getsockname()[0]
            return port
    finally:
        os.close(process)
