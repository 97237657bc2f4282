"""The images of one process, made fit for another node.

The numbers are of CRIU's images/*.proto.
"""

from __future__ import annotations

import enum
import errno
import os
import re
import signal
import struct
from collections.abc import Collection
from pathlib import Path

from ssi.node.migration.clocks import SECOND, Clocks
from ssi.node.migration.criu import CannotMove
from ssi.node.migration.images import Fields, Image
from ssi.node.smallfiles import read_bytes

_TASK, _THREAD, _REGISTERS_X86 = 3, 5, 2
_TASK_SECCOMP, _THREAD_SECCOMP = (11, 12), (11, 12)
_TASK_PENDING, _THREAD_PENDING = 10, 9
_GENERAL = 2
_AX, _ORIGINAL_AX, _IP = 11, 16, 17

_ENTRY_TYPE, _ENTRY_ID = 1, 2
_FD_ID, _FD_TYPE, _FD = 1, 3, 4

_PID, _GROUP, _SESSION = 1, 3, 4

_CLD_EXITED, _CLD_KILLED = 1, 2
_SIGINFO, _SIGINFO_SIZE = struct.Struct("=iii4xiIi"), 128

_NO_CALL = 2**64 - 1
_CALL_SIZE = 2
"""Bytes of the instruction that makes a system call."""


class FileType(enum.IntEnum):
    """Of a file entry, with the field that has its details."""

    REGULAR = 1
    PIPE = 2
    FIFO = 3
    INET = 4
    UNIX = 5
    EVENT = 6
    EPOLL = 7
    INOTIFY = 8
    SIGNAL = 9
    PACKET = 10
    TTY = 11
    FANOTIFY = 12
    NETLINK = 13
    NAMESPACE = 14
    TUN = 15
    EXTERNAL = 16
    TIMER = 17
    MEMORY = 18
    BPF = 19
    PIDFD = 20


_DETAILS = {
    FileType.REGULAR: 3, FileType.FIFO: 17, FileType.PIPE: 18, FileType.TTY: 19,
    FileType.TIMER: 12, FileType.UNIX: 16,
}  # fmt: skip
_OWNER = {
    FileType.REGULAR: 5, FileType.PIPE: 4, FileType.TTY: 4, FileType.UNIX: 9,
}  # fmt: skip
_EXTERNAL_DETAILS = 15
_NAME = 6  # of a regular file
_REMAP_OF, _REMAP_BY, _REMAP_TYPE = 1, 2, 3
_LINKED = 0
_DELETED = " (deleted)"
_UNLINKED = re.compile(r"\S+ \S+ \S+ \S+ (\d+) +(/.*) \(deleted\)")
_UNIX_FLAGS, _IS_ANOTHERS = 6, 1

AGAIN = frozenset({
    0, 1, 7, 16, 17, 18, 19, 20, 23, 34, 35, 61, 202, 230, 232, 247, 270, 271, 281,
})  # fmt: skip
"""Calls that are begun again if nothing but the freeze has interrupted them: read, write, poll,
ioctl, pread64, pwrite64, readv, writev, select, pause, nanosleep, wait4, futex, clock_nanosleep,
epoll_wait, waitid, pselect6, ppoll, epoll_pwait."""


def list_files(folder: Path) -> dict[int, tuple[int, FileType]]:
    """Return, for each descriptor, which file entry it is of, and that one's type."""
    found = {}
    for path in folder.glob("fdinfo-*.img"):
        for entry in Image(path).entries:
            kind = FileType(entry.number(_FD_TYPE))
            found[entry.number(_FD)] = (entry.number(_FD_ID), kind)
    return found


def list_pending(folder: Path) -> list[int]:
    """Return the signals that go along: those pending for the process, or its first thread."""
    found = []
    for path in folder.glob("core-*.img"):
        for core in Image(path).entries:
            if core.has(_TASK):
                for part, field in ((_TASK, _TASK_PENDING), (_THREAD, _THREAD_PENDING)):
                    queue = Fields(Fields(core.text(part)).text(field))
                    infos = (Fields(entry).text(1) for entry in queue.texts(1))
                    found += [int.from_bytes(info[:4], "little") for info in infos]
    return found


def add_child_signal(folder: Path, pid: int, uid: int, status: int) -> None:
    """Have the process get a SIGCHLD for a child that has ended, unless it gets one anyway."""
    if signal.SIGCHLD in list_pending(folder):
        return
    killed = os.WIFSIGNALED(status)
    code = _CLD_KILLED if killed else _CLD_EXITED
    ended = os.WTERMSIG(status) if killed else os.WEXITSTATUS(status)
    info = Fields()
    info.append(
        1, _SIGINFO.pack(signal.SIGCHLD, 0, code, pid, uid, ended).ljust(_SIGINFO_SIZE, b"\0")
    )

    def add(task: Fields) -> None:
        pending = Fields(task.text(_TASK_PENDING))
        pending.append(1, info.dump())
        task.set(_TASK_PENDING, pending.dump())

    for path in folder.glob("core-*.img"):
        image = Image(path)
        for core in image.entries:
            core.change(_TASK, add)
        image.save()


def find_highest(folder: Path) -> int:
    """Return the highest PID of its threads."""
    return max(int(path.stem.removeprefix("core-")) for path in folder.glob("core-*.img"))


def make_external(folder: Path, entries: Collection[int]) -> None:
    """Have the plugin open these file entries, instead of CRIU."""
    files = Image(folder / "files.img")
    pipes = set()
    for entry in files.entries:
        if entry.number(_ENTRY_ID) not in entries:
            continue
        kind = FileType(entry.number(_ENTRY_TYPE))
        if kind == FileType.EXTERNAL:
            continue
        details = Fields(entry.text(_DETAILS[kind]))
        if kind == FileType.PIPE:
            pipes.add(details.number(2))
        external = Fields()
        external.set(1, entry.number(_ENTRY_ID))
        external.set(5, details.text(_OWNER[kind]) if kind in _OWNER else _nobody().dump())
        entry.drop(_DETAILS[kind])
        entry.set(_ENTRY_TYPE, FileType.EXTERNAL)
        entry.set(_EXTERNAL_DETAILS, external.dump())
    # What these were connected to.
    files.entries = [entry for entry in files.entries if not _is_anothers(entry)]
    files.save()
    for path in folder.glob("fdinfo-*.img"):
        image = Image(path)
        for entry in image.entries:
            if entry.number(_FD_ID) in entries:
                entry.set(_FD_TYPE, FileType.EXTERNAL)
        image.save()
    for name in ("tty-info.img", "tty.img", "tty-data.img"):
        (folder / name).unlink(missing_ok=True)


def _is_anothers(entry: Fields) -> bool:
    """Tell whether a file entry is of a socket that CRIU has only seen from its other end."""
    details = Fields(entry.text(_DETAILS[FileType.UNIX]))
    return bool(details.number(_UNIX_FLAGS) & _IS_ANOTHERS)


def _nobody() -> Fields:
    """Return an entry of who gets SIGIO: nobody."""
    owner = Fields()
    for field in range(1, 6):
        owner.set(field, 0)
    return owner


def free_from_node(folder: Path) -> None:
    """Remove what is of the node that the process leaves: its filter, and its interruptions."""
    (folder / "seccomp.img").unlink(missing_ok=True)
    for path in folder.glob("core-*.img"):
        image = Image(path)
        for core in image.entries:
            core.change(_TASK, lambda task: task.drop(*_TASK_SECCOMP))
            core.change(_THREAD, lambda thread: thread.drop(*_THREAD_SECCOMP))
            core.change(_REGISTERS_X86, lambda info: info.change(_GENERAL, _begin_again))
        image.save()
    files = Image(folder / "files.img")
    for entry in files.entries:
        entry.change(_DETAILS[FileType.TIMER], _tick_at_once)
    files.save()


def _tick_at_once(timer: Fields) -> None:
    """Have one that repeats, and whose last tick was not read, go on: CRIU takes it for stopped."""
    first, interval = (7, 8), (9, 10)
    if any(map(timer.number, interval)) and not any(map(timer.number, first)):
        timer.set(first[1], 1)


def find_names(pid: int, folder: Path) -> None:
    """Have files that have lost the name they were opened by be found by one that they have.

    sem_open makes a file by a name that nobody else uses, links it, and unlinks the first. CRIU
    gives such a file one more name, which is gone before it would be wanted. Raises CannotMove.
    """
    if not (folder / "remap-fpath.img").exists():
        return
    remaps = Image(folder / "remap-fpath.img")
    linked = {
        entry.number(_REMAP_OF): entry.number(_REMAP_BY)
        for entry in remaps.entries
        if entry.number(_REMAP_TYPE) == _LINKED
    }
    remaps.entries = [one for one in remaps.entries if one.number(_REMAP_TYPE) != _LINKED]
    remaps.save()
    files = Image(folder / "files.img")
    files.entries = [one for one in files.entries if one.number(_ENTRY_ID) not in linked.values()]
    inodes = _list_unlinked(pid)
    for entry in files.entries:
        if entry.number(_ENTRY_ID) in linked:
            entry.change(
                _DETAILS[FileType.REGULAR],
                lambda one: one.set(_NAME, os.fsencode(_find_name(pid, one, inodes))),
            )
    files.save()


def _list_unlinked(pid: int) -> dict[str, int]:
    """Return the inodes of files that a process has, by the names that they have no more."""
    lines = os.fsdecode(read_bytes(f"/proc/{pid}/maps")).splitlines()
    found = {match[2]: int(match[1]) for line in lines if (match := _UNLINKED.fullmatch(line))}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        if (name := os.readlink(path)).endswith(_DELETED):
            found[name.removesuffix(_DELETED)] = path.stat().st_ino
    return found


def _find_name(pid: int, details: Fields, inodes: dict[str, int]) -> str:
    name = os.fsdecode(details.text(_NAME))
    folder = Path(name).parent
    with os.scandir(f"/proc/{pid}/root{folder}") as entries:
        for entry in entries:
            if entry.inode() == inodes.get(name):
                return str(folder / entry.name)
    raise CannotMove(f"its file {name} has another name now, in another folder")


def set_clocks(folder: Path, clocks: Clocks) -> None:
    """Have its clocks go on from these."""
    for path in folder.glob("timens-*.img"):
        image = Image(path)
        for entry in image.entries:
            for field, nanoseconds in ((1, clocks.monotonic), (2, clocks.boot)):
                time = Fields()
                time.set(1, nanoseconds // SECOND)
                time.set(2, nanoseconds % SECOND)
                entry.set(field, time.dump())
        image.save()


def lead_session(folder: Path) -> None:
    """Have it lead a session and a group of its own: it finds no other where it comes to."""
    image = Image(folder / "pstree.img")
    for entry in image.entries:
        for field in (_GROUP, _SESSION):
            entry.set(field, entry.number(_PID))
    image.save()


def _begin_again(registers: Fields) -> None:
    """Have a call begin again that the freeze alone has interrupted."""
    interrupted = registers.number(_AX) == 2**64 - errno.EINTR
    if interrupted and registers.number(_ORIGINAL_AX) in AGAIN:
        registers.set(_AX, registers.number(_ORIGINAL_AX))
        registers.set(_IP, registers.number(_IP) - _CALL_SIZE)
        registers.set(_ORIGINAL_AX, _NO_CALL)
