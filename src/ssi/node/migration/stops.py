"""By which signal a process was stopped, which /proc does not say."""

from __future__ import annotations

import ctypes
import os
import signal

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
_WALL = 0x40000000
_STOPS = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}


def find_stop(pid: int) -> int:
    """Return the signal by which a stopped process was stopped, 0 if it is not.

    It is traced for a moment, and stays stopped. Not for an event loop's thread: it waits, and only
    the thread that traces may.
    """
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    ptrace.restype = ctypes.c_long
    if ptrace(_SEIZE, pid, None, None):
        return 0
    found, status = os.waitpid(pid, _WALL | os.WNOHANG)
    if not found:
        # It has just gone on: only who is stopped can be let go.
        ptrace(_INTERRUPT, pid, None, None)
        _, status = os.waitpid(pid, _WALL)
    if not os.WIFSTOPPED(status):
        return 0
    ptrace(_DETACH, pid, None, None)
    number = os.WSTOPSIG(status)
    return number if number in _STOPS else 0
