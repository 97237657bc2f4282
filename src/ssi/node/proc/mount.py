"""Mounts: /proc of the userland becomes ours, and the kernel's own stays reachable behind it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
from pathlib import Path

from ssi.common.errors import SsiError
from ssi.node.root import USERLAND

DEVICE = "/dev/fuse"
REAL = "/run/ssi/proc"
"""The kernel's procfs in the userland (make-userland)."""

CLONE_FS = 0x200
CLONE_NEWNS = 0x20000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND = 2, 4, 8, 4096
MNT_DETACH = 2


def _check(result: int, what: str) -> None:
    if result:
        raise SsiError(f"{what}: {os.strerror(ctypes.get_errno())}")


def _mount(fd: int, space: Path) -> None:
    """In a thread of its own, which ends in the userland's namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    # Namespace, root and working directory are the whole process's unless they are unshared.
    _check(libc.unshare(CLONE_FS), "unshare")
    entered = os.open(space, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(libc.setns(entered, CLONE_NEWNS), "entering the userland")
    finally:
        os.close(entered)
    # What an earlier daemon has mounted, and not given to the launcher before it was killed.
    while libc.umount2(b"/proc", MNT_DETACH) == 0:
        pass
    options = f"fd={fd},rootmode=40555,user_id=0,group_id=0,allow_other,default_permissions"
    failed = libc.mount(
        b"proc", b"/proc", b"fuse", MS_NOSUID | MS_NODEV | MS_NOEXEC,
        f"{options},elsewhere={REAL}".encode(),
    )  # fmt: skip
    error = ctypes.get_errno()
    if failed:
        libc.mount(REAL.encode(), b"/proc", None, MS_BIND, None)
        raise SsiError(f"mounting /proc: {os.strerror(error)}")


async def mount_proc(fd: int) -> None:
    """Mount `fd` over /proc of the userland; raises SsiError."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def run() -> None:
        try:
            _mount(fd, USERLAND)
        except (SsiError, OSError) as error:
            loop.call_soon_threadsafe(done.set_exception, SsiError(str(error)))
        else:
            loop.call_soon_threadsafe(done.set_result, None)

    threading.Thread(target=run, name="mount-proc", daemon=True).start()
    await done


def open_device() -> int:
    """Return a descriptor for a new file system."""
    return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
