"""What a ghost is ordered, and what it reports. native/ghost.h is the same in C."""

from __future__ import annotations

import dataclasses
import enum
import struct

from ssi.common.errors import ProtocolError

_ORDER = struct.Struct("=IiQIIII")
_REPORT = struct.Struct("=IIQq")
_HELLO = struct.Struct("=QQII")
_SIGNAL = struct.Struct("=IiiII")

SIGNAL_SIZE = 128
"""Of a struct signalfd_siginfo."""

MAX_DATA = 32 * 1024
"""Bytes read or written by one order at most."""

BACKGROUND = -4000
"""A result: the terminal is in the hands of others."""

OWN_SIGNAL = 0x551

FROM_KERNEL = 128  # SI_KERNEL


class Order(enum.IntEnum):
    """Kinds of orders. Up to SHUTDOWN they are answered by a result."""

    READ = 1
    WRITE = 2
    IOCTL = 3
    IOCTL_VALUE = 4
    WATCH = 5
    TERMINAL = 6
    SHUTDOWN = 7
    CANCEL = 8
    DONE = 9
    CLOSE = 10
    STATE = 11
    STARTED = 12
    HERE = 13
    SEEK = 14
    HOME = 15
    REAP = 16


class Flag(enum.IntFlag):
    """Of an order."""

    NONBLOCK = 1
    SETS = 2
    MESSAGES = 4


class Report(enum.IntEnum):
    """Kinds of reports."""

    HELLO = 1
    RESULT = 2
    SIGNAL = 3
    ORPHAN = 4
    KEEPER = 5
    CHILD = 6
    ALONE = 7


@dataclasses.dataclass(frozen=True, slots=True)
class Hello:
    """What a ghost had before it became one."""

    blocked: int
    ignored: int
    """Signals: bit n-1 for signal n."""
    death_signal: int
    keeps: bool = False
    """Its body has ended: it is there for descriptors that others use."""


def pack_order(
    order: Order, *, fd: int = -1, number: int = 0, value: int = 0, size: int = 0, flags: int = 0,
    data: bytes = b"",
) -> bytes:  # fmt: skip
    """Return an order; `number` is its id."""
    return _ORDER.pack(order, fd, number, value & 0xFFFFFFFF, size, flags, 0) + data


def parse_report(data: bytes) -> tuple[int, int, int, bytes]:
    """Return kind, id, result and data of a report, or raise ProtocolError."""
    if len(data) < _REPORT.size:
        raise ProtocolError(f"a report of {len(data)} bytes")
    kind, _, number, result = _REPORT.unpack_from(data)
    return kind, number, result, data[_REPORT.size :]


def parse_hello(data: bytes) -> Hello:
    """Return the hello in a report's data, or raise ProtocolError."""
    if len(data) != _HELLO.size:
        raise ProtocolError(f"a hello of {len(data)} bytes")
    blocked, ignored, death_signal, keeps = _HELLO.unpack(data)
    if death_signal > 64:
        raise ProtocolError(f"signal {death_signal}")
    return Hello(blocked, ignored, death_signal, bool(keeps))


@dataclasses.dataclass(frozen=True, slots=True)
class Got:
    """A signal that a ghost got."""

    number: int
    code: int
    """As in a siginfo: FROM_KERNEL for one of the terminal."""
    pid: int
    uid: int
    value: int


def parse_signal(data: bytes) -> Got:
    """Return the signal in a report's data, or raise ProtocolError."""
    if len(data) != SIGNAL_SIZE:
        raise ProtocolError(f"a signal of {len(data)} bytes")
    number, _, code, pid, uid = _SIGNAL.unpack_from(data)
    (value,) = struct.unpack_from("=i", data, 44)
    if not 1 <= number <= 64:
        raise ProtocolError(f"signal {number}")
    return Got(number, code, pid, uid, value)
