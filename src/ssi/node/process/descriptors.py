"""A process's open descriptors: what they are here, and how another node has the same.

What lies on the root and has nothing that must be shared (a folder, a file that is only read or
only appended to) is opened there anew. All else stays here: over there it is a descriptor of the
remote device, and the ghost does what is done to it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import re
import stat
from collections.abc import Collection
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.wire import Message
from ssi.node.pids import origin_of
from ssi.node.root import SYSROOT
from ssi.node.smallfiles import read_text

MOST = 60
"""Descriptors that go along at most."""

MAX_FD = 2**20
SAME_FILE = 0  # KCMP_FILE
_KCMP = 312  # x86-64

KEPT_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK | os.O_DIRECTORY | os.O_PATH

SHARED_MEMORY = "/dev/shm/"
"""On the root, and the same on all nodes (make-userland)."""

MEMORY = frozenset(os.makedev(1, minor) for minor in (3, 5, 7, 8, 9))
"""null, zero, full, random, urandom: alike on all nodes."""

_NAMES = {3: "null", 5: "zero", 7: "full", 8: "random", 9: "urandom"}


@dataclasses.dataclass(frozen=True, slots=True)
class Descriptor:
    """One of a process."""

    fd: int
    flags: int
    path: str = ""
    """Within the root; empty for one that stays with the ghost."""
    inode: int = 0
    offset: int = 0
    same_as: int = -1
    """The descriptor before it of which it is a duplicate."""

    def dump(self) -> Message:
        """Return it as a message."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, message: Message) -> Descriptor:
        """Read it from a message, or raise ProtocolError."""
        path = wire.get_text(message, "path")
        if path and not path.startswith("/"):
            raise ProtocolError(f"a file {path!r:.60}")
        return cls(
            wire.get_int(message, "fd", 0, MAX_FD), wire.get_int(message, "flags", 0, 2**31), path,
            wire.get_int(message, "inode", 0, 2**63), wire.get_int(message, "offset", 0, 2**63),
            wire.get_int(message, "same_as", -1, MAX_FD),
        )  # fmt: skip


def describe(pid: int) -> list[Descriptor]:
    """Return the descriptors of `pid` that an exec leaves open."""
    found: list[Descriptor] = []
    folder = Path(f"/proc/{pid}/fd")
    for fd in sorted(int(name) for name in os.listdir(folder)):
        try:
            info = read_text(f"/proc/{pid}/fdinfo/{fd}")
            flags = int(re.findall(r"flags:\s*([0-7]+)", info)[0], 8)
            if flags & os.O_CLOEXEC:
                continue
            one = _describe(pid, fd, flags, int(re.findall(r"pos:\s*(\d+)", info)[0]))
        except OSError:
            continue  # it has just been closed
        for before in found:
            if before.same_as < 0 and is_same(pid, before.fd, pid, fd):
                one = dataclasses.replace(one, same_as=before.fd)
                break
        found.append(one)
    return found[:MOST]


def _describe(pid: int, fd: int, flags: int, offset: int) -> Descriptor:
    name = Path(f"/proc/{pid}/fd/{fd}")
    status = name.stat()
    kept = flags & KEPT_FLAGS
    if stat.S_ISCHR(status.st_mode) and status.st_rdev in MEMORY:
        return Descriptor(fd, kept, f"/dev/{_NAMES[os.minor(status.st_rdev)]}")
    path = os.readlink(name)
    is_plain = stat.S_ISREG(status.st_mode) and (
        flags & os.O_ACCMODE == os.O_RDONLY or flags & os.O_APPEND
    )
    if (is_plain or stat.S_ISDIR(status.st_mode)) and is_on_root(path, status):
        return Descriptor(fd, kept, path, status.st_ino, offset)
    return Descriptor(fd, kept)


def is_on_root(path: str, status: os.stat_result) -> bool:
    """Tell whether other nodes have this file under the same name."""
    if path.startswith(SHARED_MEMORY):
        return status.st_dev == SYSROOT.stat().st_dev
    try:
        found = Path(f"{SYSROOT}{path}").stat()
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino)


def is_same(pid: int, fd: int, other: int, theirs: int) -> bool:
    """Tell whether two descriptors, of one or two processes, share offset and flags."""
    arguments = (ctypes.c_long(n) for n in (_KCMP, pid, other, SAME_FILE, fd, theirs))
    return bool(ctypes.CDLL(None).syscall(*arguments) == 0)


def find_sharers(pid: int, fds: Collection[int]) -> dict[int, list[tuple[int, int]]]:
    """Return who else has open what descriptors of `pid` are of: processes and their descriptors.

    All with a PID of some node, and this daemon, which has ends of its commands' pipes.
    """
    wanted: dict[str, list[int]] = {}
    for fd in fds:
        wanted.setdefault(os.readlink(f"/proc/{pid}/fd/{fd}"), []).append(fd)
    found: dict[int, list[tuple[int, int]]] = {fd: [] for fd in fds}
    others = [int(name) for name in os.listdir("/proc") if name.isdigit()] if fds else []
    for other in others:
        if other == pid or not (origin_of(other) or other == os.getpid()):
            continue
        for theirs, name in list_open(other):
            for fd in wanted.get(name, []):
                found[fd].append((other, theirs))
    return found


def list_open(pid: int) -> list[tuple[int, str]]:
    """Return the descriptors of a process, each with what /proc calls its file."""
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.append((int(name), os.readlink(f"/proc/{pid}/fd/{name}")))
    return found


def is_memory(pid: int, fd: int) -> bool:
    """Tell whether a descriptor is of a device that is the same on each node, as /dev/null."""
    status = Path(f"/proc/{pid}/fd/{fd}").stat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev in MEMORY


def open_on_root(one: Descriptor) -> int:
    """Open a file of the root or the memory as a process elsewhere has it; raises OSError."""
    if not one.inode:
        return os.open(one.path, one.flags | os.O_CLOEXEC)
    fd = os.open(f"{SYSROOT}{one.path}", one.flags | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        if os.fstat(fd).st_ino != one.inode:
            raise FileNotFoundError(f"{one.path} is another file now")
        if one.offset and stat.S_ISREG(os.fstat(fd).st_mode):
            os.lseek(fd, one.offset, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd
