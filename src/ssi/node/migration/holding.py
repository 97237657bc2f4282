"""Holding processes, so that their parent does not hear that they stop or end.

What CRIU makes of a task does not stand a SIGCHLD (criu/pie/restorer.c: sigchld_handler). To hold
is to trace, and to trace is a matter of one thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import queue
import threading
from collections.abc import AsyncIterator, Collection

_CONTINUE, _DETACH, _SEIZE, _INTERRUPT = 7, 17, 0x4206, 0x4207
_WALL = 0x40000000

WITHIN_S = 5.0

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.asynccontextmanager
async def holding(pids: Collection[int]) -> AsyncIterator[None]:
    """Hold these as long as this lasts; those that cannot be held have ended, or are traced.

    Raises TimeoutError if one waits for something that cannot be interrupted.
    """
    if not pids:
        yield
        return
    held, release = queue.SimpleQueue[None](), threading.Event()
    thread = threading.Thread(target=_hold, args=(list(pids), held, release), daemon=True)
    thread.start()
    try:
        await asyncio.to_thread(_await, held)
        yield
    finally:
        release.set()


def _await(held: queue.SimpleQueue[None]) -> None:
    try:
        held.get(timeout=WITHIN_S)
    except queue.Empty as error:
        raise TimeoutError from error


def _hold(pids: list[int], held: queue.SimpleQueue[None], release: threading.Event) -> None:
    stopped: dict[int, int] = {}
    try:
        for pid in pids:
            with contextlib.suppress(OSError):
                _trace(_SEIZE, pid)
                _trace(_INTERRUPT, pid)
                stopped[pid] = _wait_stop(pid)
    finally:
        held.put(None)
    release.wait()
    for pid, number in stopped.items():
        # One that was killed meanwhile is told of now: to let go of it is all.
        with contextlib.suppress(OSError):
            _trace(_DETACH, pid, number)


def _wait_stop(pid: int) -> int:
    """Wait until it is held; return the signal that it was about to get, 0 for none."""
    _, status = os.waitpid(pid, _WALL)
    by_us = status >> 16
    return os.WSTOPSIG(status) if os.WIFSTOPPED(status) and not by_us else 0


def _trace(request: int, pid: int, data: int = 0) -> None:
    words = (ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_void_p(0), ctypes.c_void_p(data))
    if _libc.ptrace(*words) == -1:
        number = ctypes.get_errno()
        if number != errno.ESRCH:
            raise OSError(number, os.strerror(number), f"process {pid}")
        raise ProcessLookupError(number, os.strerror(number), f"process {pid}")
