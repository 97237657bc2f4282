"""Where in /proc something is, as a number that the kernel keeps and any daemon understands.

The number holds all there is to know, so that a daemon that was started again needs no memory.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import stat

FILES = stat.S_IFREG | 0o444
OWNERS = stat.S_IFREG | 0o400
"""The kernel judges readers by another rule, which for these comes to the owner and root."""
FOLDER = stat.S_IFDIR | 0o555
OWNERS_FOLDER = stat.S_IFDIR | 0o500
LINK = stat.S_IFLNK | 0o777

TABLE = ("stat", "status", "cmdline", "environ", "comm", "statm", "where")
"""Made of what nodes tell of all their processes."""

GOTO, CANTMOVE = "goto", "cantmove"
CONTROL = ".ssi"
"""The folder that has these two of every process."""

NAMES = {
    **dict.fromkeys(TABLE, FILES),
    "environ": OWNERS,
    **dict.fromkeys(("cwd", "exe", "root"), LINK),
    **dict.fromkeys(("fd", "fdinfo", "ns"), OWNERS_FOLDER),
    "task": FOLDER,
    **dict.fromkeys((
        "auxv", "io", "maps", "mountinfo", "mounts", "mountstats", "personality",
        "smaps", "smaps_rollup", "stack", "syscall",
    ), OWNERS),
    **dict.fromkeys((
        "cgroup", "coredump_filter", "gid_map", "limits", "loginuid", "oom_adj", "oom_score",
        "oom_score_adj", "projid_map", "sched", "schedstat", "sessionid", "setgroups", "timers",
        "uid_map", "wchan",
    ), FILES),
    **dict.fromkeys((GOTO, CANTMOVE), LINK),
}  # fmt: skip
"""What there may be in a process's folder, and how it is shown."""

_ORDER = list(NAMES)

NAMESPACES = (
    "cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user",
    "uts",
)  # fmt: skip

SYSTEM = ("loadavg", "meminfo", "stat")
"""Files of the root that tell of the whole cluster."""

SYSVIPC = "sysvipc"
TABLES = ("sysvipc/msg", "sysvipc/sem", "sysvipc/shm")
"""A folder of the root, and what is in it."""

_OF_ALL = (*SYSTEM, SYSVIPC, *TABLES)

NUMBERS = 1 << 24
MOST = 1 << 22
"""More than any PID."""

_FOREIGN, _SYSTEM, _LOCAL, _CONTROL = 1, 2, 3, 4
_KIND = 60


def is_number(name: str) -> bool:
    """Tell whether `name` is how the kernel writes a number."""
    return name.isascii() and name.isdigit() and name == str(int(name))


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Something of a foreign process: its folder, or what NAMES has, or what is in a folder there.

    `number` is a descriptor, a thread or the index of a namespace, and -1 where there is none;
    `below` a name in a thread's folder.
    """

    pid: int
    name: str = ""
    number: int = -1
    below: str = ""

    @property
    def node(self) -> int:
        """The number for the kernel."""
        first = _ORDER.index(self.name) + 1 if self.name else 0
        second = _ORDER.index(self.below) + 1 if self.below else 0
        return (
            _FOREIGN << _KIND | self.pid << 38 | first << 32 | (self.number + 1) << 6 | second
        )  # fmt: skip

    @property
    def path(self) -> str:
        """Where it is below the process's folder."""
        if self.number < 0:
            return self.name
        last = NAMESPACES[self.number] if self.name == "ns" else str(self.number)
        return f"{self.name}/{last}/{self.below}".rstrip("/")

    @property
    def mode(self) -> int:
        """How it is shown."""
        if self.below:
            return NAMES[self.below]
        if self.number >= 0:
            return {"task": FOLDER, "fdinfo": OWNERS}.get(self.name, LINK)
        return NAMES[self.name] if self.name else FOLDER

    @property
    def is_tabled(self) -> bool:
        """Whether it is a file of TABLE."""
        return self.number < 0 and self.name in TABLE

    def child(self, name: str) -> Place:
        """Return what is called `name` in this folder; raises FileNotFoundError."""
        if not self.name and name in NAMES:
            return Place(self.pid, name)
        if self.name == "task" and self.number >= 0 and not self.below and name in NAMES:
            return Place(self.pid, self.name, self.number, name)
        if self.name == "ns" and name in NAMESPACES:
            return Place(self.pid, self.name, NAMESPACES.index(name))
        if self.number < 0 and self.name in {"fd", "fdinfo", "task"} and is_number(name):
            return Place(self.pid, self.name, min(int(name), NUMBERS - 2))
        raise FileNotFoundError(errno.ENOENT, name)


def place_of(node: int) -> Place | None:
    """Return the place with this number, None if it is not of a foreign process."""
    if node >> _KIND != _FOREIGN:
        return None
    first, second = node >> 32 & 63, node & 63
    return Place(
        node >> 38 & 0x3FFFFF, _ORDER[first - 1] if first else "", (node >> 6 & 0x3FFFFFF) - 1,
        _ORDER[second - 1] if second else "",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class ControlPlace:
    """The folder CONTROL, or a folder PID-TID there, or what is in that: GOTO or CANTMOVE."""

    pid: int = 0
    name: str = ""
    thread: int = 0
    """Who has opened it."""

    @property
    def node(self) -> int:
        """The number for the kernel."""
        kind = ("", GOTO, CANTMOVE).index(self.name)
        return _CONTROL << _KIND | kind << 44 | self.thread << 22 | self.pid

    def child(self, name: str) -> ControlPlace:
        """Return what is called `name` in this folder; raises FileNotFoundError."""
        if self.pid and not self.name and name in {GOTO, CANTMOVE}:
            return ControlPlace(self.pid, name, self.thread)
        pid, _, thread = name.partition("-")
        if not self.pid and is_number(pid) and is_number(thread):
            numbers = int(pid), int(thread)
            if 0 < min(numbers) <= max(numbers) < MOST:
                return ControlPlace(numbers[0], "", numbers[1])
        raise FileNotFoundError(errno.ENOENT, name)


def control_of(node: int) -> ControlPlace | None:
    """Return the place with this number, None if it is none of CONTROL."""
    if node >> _KIND != _CONTROL:
        return None
    name = ("", GOTO, CANTMOVE)[node >> 44 & 3]
    return ControlPlace(node & 0x3FFFFF, name, node >> 22 & 0x3FFFFF)


def link_of(place: Place, thread: int) -> bytes:
    """Return where the symlinks GOTO and CANTMOVE of a foreign process lead a thread."""
    return f"/proc/{CONTROL}/{place.pid}-{thread}/{place.name}".encode()


def system_node(name: str) -> int:
    """Return the number of what tells of the whole cluster."""
    return _SYSTEM << _KIND | _OF_ALL.index(name)


def system_of(node: int) -> str | None:
    """Return the name of that with this number."""
    return _OF_ALL[node & 0xFF] if node >> _KIND == _SYSTEM else None


def local_node(name: str) -> int:
    """Return the number of an entry that is the kernel's own."""
    if name.isdigit():
        return _LOCAL << _KIND | int(name)
    # No PID's, and the same in every daemon.
    digest = hashlib.blake2s(name.encode(errors="surrogateescape"), digest_size=7).digest()
    return _LOCAL << _KIND | 1 << 59 | int.from_bytes(digest, "little")
