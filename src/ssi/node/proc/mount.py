"""Mounts in the userland, each with the kernel's own behind it: /proc, /devfs, /dev/mqueue."""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path

from ssi.common.errors import SsiError
from ssi.node.root import USERLAND

DEVICE = "/dev/fuse"
REAL = "/run/ssi/proc"
"""The kernel's procfs in the userland (make-userland)."""

CLONE_FS = 0x200
CLONE_NEWNS = 0x20000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND = 1, 2, 4, 8, 4096
MNT_DETACH = 2


def _check(result: int, what: str) -> None:
    if result:
        raise SsiError(f"{what}: {os.strerror(ctypes.get_errno())}")


DEVICES = "/devfs"
BEHIND_DEVICES = "/run/ssi/devfs"
"""Where this node's own folder of /devfs is (make-userland)."""

QUEUES = "/dev/mqueue"
BEHIND_QUEUES = "/run/ssi/mqueue"
"""Where this node's own queues are (make-userland)."""

OPTIONS = "rootmode=40555,user_id=0,group_id=0,allow_other,default_permissions"


def _enter(space: Path) -> ctypes.CDLL:
    """Enter the userland, in a thread of its own which ends there."""
    libc = ctypes.CDLL(None, use_errno=True)
    # Namespace, root and working directory are the whole process's unless they are unshared.
    _check(libc.unshare(CLONE_FS), "unshare")
    entered = os.open(space, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(libc.setns(entered, CLONE_NEWNS), "entering the userland")
    finally:
        os.close(entered)
    return libc


def _mount_proc(fd: int) -> None:
    libc = _enter(USERLAND)
    # What an earlier daemon has mounted, and not given to the launcher before it was killed.
    while libc.umount2(b"/proc", MNT_DETACH) == 0:
        pass
    failed = libc.mount(
        b"proc", b"/proc", b"fuse", MS_NOSUID | MS_NODEV | MS_NOEXEC,
        f"fd={fd},{OPTIONS},elsewhere={REAL}".encode(),
    )  # fmt: skip
    error = ctypes.get_errno()
    if failed:
        libc.mount(REAL.encode(), b"/proc", None, MS_BIND, None)
        raise SsiError(f"mounting /proc: {os.strerror(error)}")


def _mount_devices(fd: int) -> None:
    libc = _enter(USERLAND)
    while libc.umount2(DEVICES.encode(), MNT_DETACH) == 0:
        pass
    # Nothing is made or changed there: a device's own node does that.
    _check(
        libc.mount(
            b"devfs", DEVICES.encode(), b"fuse", MS_RDONLY | MS_NOSUID | MS_NOEXEC,
            f"fd={fd},{OPTIONS},elsewhere={BEHIND_DEVICES}".encode(),
        ),
        f"mounting {DEVICES}",
    )  # fmt: skip


def _mount_queues(fd: int) -> None:
    libc = _enter(USERLAND)
    while libc.umount2(QUEUES.encode(), MNT_DETACH) == 0:
        pass
    options = OPTIONS.replace("40555", "41777")
    _check(
        libc.mount(
            b"mqueue", QUEUES.encode(), b"fuse", MS_NOSUID | MS_NODEV | MS_NOEXEC,
            f"fd={fd},{options},elsewhere={BEHIND_QUEUES}".encode(),
        ),
        f"mounting {QUEUES}",
    )  # fmt: skip


async def mount_proc(fd: int) -> None:
    """Mount `fd` over /proc of the userland; raises SsiError."""
    await _run_in_thread(_mount_proc, fd)


async def mount_devices(fd: int) -> None:
    """Mount `fd` at /devfs of the userland; raises SsiError."""
    await _run_in_thread(_mount_devices, fd)


async def mount_queues(fd: int) -> None:
    """Mount `fd` at /dev/mqueue of the userland; raises SsiError."""
    await _run_in_thread(_mount_queues, fd)


async def _run_in_thread(mount: Callable[[int], None], fd: int) -> None:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def run() -> None:
        try:
            mount(fd)
        except (SsiError, OSError) as error:
            loop.call_soon_threadsafe(done.set_exception, SsiError(str(error)))
        else:
            loop.call_soon_threadsafe(done.set_result, None)

    threading.Thread(target=run, name="mount", daemon=True).start()
    await done


def open_device() -> int:
    """Return a descriptor for a new file system."""
    return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
