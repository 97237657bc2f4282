"""Signals: done on the node where the process is, by the kernel's rule for who may send them."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import signal
import struct
from collections.abc import Mapping
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.wire import Message
from ssi.node.process.caller import MAX_PID, Caller, read_caller

INFO_SIZE = 128
"""Of the kernel's siginfo."""

_INFO = struct.Struct("=iiiiiIq")
"""Signal, error, code, a gap, sender's PID and real user ID, value."""

QUEUED = -1  # SI_QUEUE
MAX_SIGNAL = signal.NSIG - 1

SEND = 424  # pidfd_send_signal
SEND_TO_THREAD = 297  # rt_tgsigqueueinfo


@dataclasses.dataclass(frozen=True, slots=True)
class Sending:
    """A signal on its way to a process, or to one of its threads."""

    pid: int
    thread: int
    """0: whichever thread the kernel chooses."""
    number: int
    """0: none is sent, only the right to is asked for."""
    info: bytes
    """The kernel's siginfo; empty for a plain kill."""
    caller: Caller

    def dump(self) -> Message:
        """Return it as a message."""
        return {
            "pid": self.pid, "thread": self.thread, "signal": self.number,
            "info": wire.put_bytes(self.info), "caller": self.caller.dump(),
        }  # fmt: skip

    @classmethod
    def load(cls, message: Mapping[str, object]) -> Sending:
        """Read it from a message, or raise ProtocolError."""
        info = wire.get_bytes(message, "info")
        if len(info) not in {0, INFO_SIZE}:
            raise ProtocolError(f"a siginfo of {len(info)} bytes")
        return cls(
            wire.get_int(message, "pid", 1, MAX_PID), wire.get_int(message, "thread", 0, MAX_PID),
            wire.get_int(message, "signal", 0, MAX_SIGNAL), info,
            Caller.load(wire.get_object(message, "caller")),
        )  # fmt: skip


def make_info(number: int, caller: Caller) -> bytes:
    """Return the siginfo of a plain kill.

    Only the kernel itself may say SI_USER of somebody else; sender and user are right.
    """
    return _INFO.pack(number, 0, QUEUED, 0, caller.pid, caller.uids[0], 0).ljust(INFO_SIZE, b"\0")


def may_send(number: int, caller: Caller, target: Caller, *, same_session: bool) -> bool:
    """Tell whether the kernel would let `caller` send signal `number` to `target`."""
    real, effective, _ = caller.uids
    if effective == 0 or (number == signal.SIGCONT and same_session):
        return True
    return bool({real, effective} & {target.uids[0], target.uids[2]})


def send(sending: Sending, *, session: int = 0) -> None:
    """Send a signal to a process of this node; raises OSError as the kernel would.

    `session` is that of the caller.
    """
    # By descriptor: the number may mean somebody else a moment later.
    fd = os.pidfd_open(sending.pid)
    try:
        _check(sending, session)
        if sending.number:
            _deliver(fd, sending)
    finally:
        os.close(fd)


def deliver(
    pid: int, number: int, sender: int, uid: int, value: int, *, code: int = QUEUED
) -> None:
    """Send a signal that another process has got, with what it was told of it; raises OSError."""
    fd = os.pidfd_open(pid)
    try:
        info = _INFO.pack(number, 0, code, 0, sender, uid, value).ljust(INFO_SIZE, b"\0")
        _call(SEND, fd, number, info, 0)
    finally:
        os.close(fd)


def deliver_to_thread(thread: int, number: int) -> None:
    """Send a signal to one thread; raises OSError."""
    info = _INFO.pack(number, 0, QUEUED, 0, 0, 0, 0).ljust(INFO_SIZE, b"\0")
    _call(SEND_TO_THREAD, read_caller(thread).pid, thread, number, info)


def _check(sending: Sending, session: int) -> None:
    if sending.thread and not Path(f"/proc/{sending.pid}/task/{sending.thread}").exists():
        raise ProcessLookupError(errno.ESRCH, "no such thread")
    target = read_caller(sending.pid)
    same_session = session == os.getsid(sending.pid)
    if not may_send(sending.number, sending.caller, target, same_session=same_session):
        raise PermissionError(errno.EPERM, "not allowed")


def _deliver(fd: int, sending: Sending) -> None:
    info = ctypes.create_string_buffer(
        sending.info or make_info(sending.number, sending.caller), INFO_SIZE
    )
    if sending.thread:
        _call(SEND_TO_THREAD, sending.pid, sending.thread, sending.number, info)
    else:
        _call(SEND, fd, sending.number, info, 0)


def _call(number: int, *arguments: object) -> None:
    longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    ctypes.set_errno(0)
    if ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *longs) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
