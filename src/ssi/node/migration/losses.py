"""What a process would lose in a file, besides what keeps it from moving: then it is not saved."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import termios
from collections.abc import Iterator
from pathlib import Path

from ssi.node.migration.locks import list_locks
from ssi.node.process.descriptors import find_sharers
from ssi.node.process.device import PATH, get_descriptor
from ssi.node.process.family import list_children


def find_losses(pid: int) -> Iterator[str]:
    """Return what a process would lose, or find changed, in a file."""
    for child in list_children(pid):
        yield f"it has a child, process {child}, which would not be saved"
    with contextlib.suppress(FileNotFoundError):
        for fd in sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd")):
            with contextlib.suppress(FileNotFoundError):  # it has just been closed
                if what := _describe(pid, fd):
                    yield f"descriptor {fd} is {what}"
        yield from _find_deleted(pid)
    for lock in list_locks(pid):
        yield f"it holds a lock of {lock.path}"


def _describe(pid: int, fd: int) -> str:
    name = f"/proc/{pid}/fd/{fd}"
    target, status = os.readlink(name), Path(name).stat()
    if target == PATH:
        return "" if is_terminal(pid, fd) else "of another node's file or pipe, as of `onnode`"
    if stat.S_ISFIFO(status.st_mode) and not target.startswith("/"):
        return "a pipe that others have open as well" if find_sharers(pid, [fd])[fd] else ""
    return _describe_file(target, status)


def _describe_file(target: str, status: os.stat_result) -> str:
    if target.startswith("anon_inode:inotify"):
        return "a watch for changes of files (inotify)"
    if stat.S_ISFIFO(status.st_mode):
        return f"the FIFO {target}"
    is_file = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    if is_file and not status.st_nlink and not target.startswith("/memfd:"):
        return f"of a deleted file: {target}"
    return f"of {target}" if target.startswith("/proc/") else ""


def _find_deleted(pid: int) -> Iterator[str]:
    for name in os.listdir(f"/proc/{pid}/map_files"):
        with contextlib.suppress(FileNotFoundError):
            path = f"/proc/{pid}/map_files/{name}"
            target = os.readlink(path)
            in_memory = target.startswith(("/memfd:", "/dev/zero", "/SYSV"))
            if not in_memory and not Path(path).stat().st_nlink:
                yield f"it has mapped a deleted file: {target}"


def is_terminal(pid: int, fd: int) -> bool:
    """Tell whether a descriptor is of a terminal, of this node or another one."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISCHR(Path(f"/proc/{pid}/fd/{fd}").stat().st_mode):
            return False
    process = os.pidfd_open(pid)
    try:
        mine = get_descriptor(process, fd)
    except OSError:
        return False
    finally:
        os.close(process)
    try:
        fcntl.ioctl(mine, termios.TCGETS, bytes(struct.calcsize("60s")))
    except OSError as error:
        # A terminal that has hung up is one.
        return error.errno == errno.EIO
    finally:
        os.close(mine)
    return True
