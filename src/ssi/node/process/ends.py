"""How processes end that are not ours to wait for."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import struct

from ssi.node.processes import read_stat

_GET_INFO = 0xC040FF0B
"""PIDFD_GET_INFO, with the first version of its structure (include/uapi/linux/pidfd.h)."""
_INFO = struct.Struct("=Q52xi")
_MASK_EXIT = 1 << 3

_STAT_STATE, _STAT_EXIT_CODE = 0, 49
"""Fields of /proc/PID/stat behind the name."""


async def wait_status(pid: int) -> int:
    """Wait until a process has ended, and return its wait status; 0 if that is not known."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return 0
    try:
        await _wait_for(fd, select.EPOLLIN)
        status = read_zombie(pid)
        return _read_info(fd) if status is None else status
    finally:
        os.close(fd)


async def wait_reaped(pid: int) -> None:
    """Wait until a process has ended, and its parent has heard of it."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await _wait_for(fd, 0)
    finally:
        os.close(fd)


async def _wait_for(fd: int, events: int) -> None:
    """Wait for one of these events, or EPOLLHUP."""
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    with select.epoll() as epoll:
        epoll.register(fd, events)
        loop.add_reader(epoll.fileno(), ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(epoll.fileno())


def read_zombie(pid: int) -> int | None:
    """Return the status of a process that has ended unheard by its parent; None for others."""
    with contextlib.suppress(OSError, IndexError):
        fields = read_stat(pid)
        if fields[_STAT_STATE] == "Z":
            return int(fields[_STAT_EXIT_CODE])
    return None


def _read_info(fd: int) -> int:
    """Return the status of one of which its parent has heard; Linux 6.15 has it, others say 0."""
    with contextlib.suppress(OSError):
        info = _INFO.pack(_MASK_EXIT, 0)
        mask, status = _INFO.unpack(fcntl.ioctl(fd, _GET_INFO, info))
        if mask & _MASK_EXIT:
            return int(status)
    return 0
