"""What keeps a process of this node from moving, in words for its user.

All of it is found by looking, before anything is frozen. What CRIU alone can tell it still tells
later, and the process stays then, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import mmap
import os
import re
import socket
import stat
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from pathlib import Path

from ssi.common import wire
from ssi.common.wire import Message
from ssi.node.devfs.places import FOLDER
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.migration import locks, semaphores, sockets
from ssi.node.migration.criu import CannotMove
from ssi.node.migration.stops import find_stop
from ssi.node.pids import RANGE
from ssi.node.proc.places import CONTROL
from ssi.node.process.caller import MAX_PID, Caller, read_caller
from ssi.node.process.descriptors import SHARED_MEMORY, find_sharers, is_on_root
from ssi.node.process.device import get_descriptor
from ssi.node.process.foreign import Foreign
from ssi.node.process.places import Places
from ssi.node.processes import read_stat
from ssi.node.root import SYSROOT, USERLAND
from ssi.node.smallfiles import read_bytes, read_text

WITHIN_S = 5.0
NAMESPACES = {
    "mnt": "mount", "net": "network", "user": "user", "pid": "PID", "pid_for_children": "PID",
    "ipc": "IPC", "uts": "UTS",
}  # fmt: skip
DEVICES = re.compile(r"/dev/(null|zero|full|random|urandom|ssi|console|tty\w*|pts/\d+)")
STREAMS = f"{FOLDER}/.stream"
"""What pipes of other nodes are called here (ssi.node.devfs.streams)."""
OURS = f"/proc/{CONTROL}/"
KNOWN = frozenset({"eventfd", "eventpoll", "inotify", "signalfd", "timerfd"})
"""Anonymous inodes that CRIU takes along."""

_DELETED = " (deleted)"
_SYSV = re.compile(r"/SYSV[0-9a-f]{8}|(/sysroot)?/cluster/sysv\.")
_LINE = re.compile(r"\S+ \S+ \S+ (\S+) \S+ +(/.*)")
_STAT_FLAGS, _KERNEL_THREAD = 6, 0x200000  # counted behind the name
_ELF_32 = b"\x7fELF\x01"
_SENT_NONE = re.compile(r"scm_fds:\s*0$", re.MULTILINE)
_FOR_THE_TERMINAL = {21: "SIGTTIN", 22: "SIGTTOU"}


@dataclasses.dataclass(frozen=True, slots=True)
class Usual:
    """What all processes of the userland have in common; a process that differs stays."""

    namespaces: Mapping[str, Collection[int]]
    """The inodes of their namespaces, by names as in NAMESPACES."""
    filters: int = 1


class Inquiry:
    """What keeps a process of any node: the question, and this node's answer."""

    def __init__(
        self, name: str, check: Callable[[int, Caller], None],
        find: Callable[[int], Awaitable[list[str]]], foreign: Foreign, ics: Ics,
    ) -> None:  # fmt: skip
        """`check` and `find` are given the PID, and raise ProcessLookupError or CannotMove."""
        self._name = name
        self._check = check
        self._find = find
        self._foreign = foreign
        ics.serve(name, foreign.pass_on(self._answer))

    async def ask(self, pid: int, caller: Caller) -> list[str]:
        """Return the obstacles, in words; raises CannotMove if they cannot be said."""
        words = {"pid": pid, "caller": caller.dump()}
        answer = await self._foreign.ask_where(pid, self._name, words)
        raise_refusal(pid, answer)
        return wire.get_texts(answer, "obstacles")

    async def _answer(self, call: Call) -> Message:
        pid = wire.get_int(call.body, "pid", 1, MAX_PID)
        try:
            self._check(pid, Caller.load(wire.get_object(call.body, "caller")))
            return {"error": 0, "obstacles": await self._find(pid)}
        except ProcessLookupError:
            return {"error": errno.ESRCH}
        except CannotMove as error:
            return {"error": error.number, "reason": str(error)}


class Obstacles:
    """Looks for them on this node."""

    def __init__(self, places: Places, foreign: Foreign, ics: Ics) -> None:
        self._places = places
        self._inquiry = Inquiry("obstacles", check_right, self.find, foreign, ics)

    async def ask(self, pid: int, caller: Caller) -> list[str]:
        """Return what keeps a process of any node; raises CannotMove if that cannot be said."""
        return await self._inquiry.ask(pid, caller)

    async def find(self, pid: int, *, to_leave: bool = True) -> list[str]:
        """Return what keeps a process of this node; raises ProcessLookupError, or CannotMove.

        One that is only to be saved does not leave.
        """
        body = self._places.bodies.find(pid) if to_leave else None
        pinned = ["it is pinned (onnode -p)"] if body and body.pinned else []
        try:
            # It may be in the memory of a process that is held for as long as the root is.
            async with asyncio.timeout(WITHIN_S):
                return pinned + await asyncio.to_thread(self._look, pid, to_leave=to_leave)
        except TimeoutError:
            raise CannotMove("it waits for the root", number=errno.EAGAIN) from None

    def _look(self, pid: int, *, to_leave: bool) -> list[str]:
        if pid < RANGE or _is_kernels(pid):
            return [f"it belongs to node{self._places.node} alone"]
        own = {name: {_inode(f"/proc/self/ns/{name}")} for name in NAMESPACES}
        mounts = {USERLAND.stat().st_ino}
        for visitor in self._places.stand_ins.pids:
            with contextlib.suppress(OSError):
                mounts.add(_inode(f"/proc/{visitor}/ns/mnt"))
        return list_obstacles(pid, Usual({**own, "mnt": mounts}), to_leave=to_leave)


def raise_refusal(pid: int, answer: Message) -> None:
    """Raise CannotMove if the node of a process has answered with an errno."""
    number = wire.get_int(answer, "error", 0, 4095)
    if number == errno.ESRCH:
        raise CannotMove(f"there is no process {pid}", number=number)
    if number:
        raise CannotMove(f"{pid}: {wire.get_text(answer, 'reason')}", number=number)


def check_right(pid: int, caller: Caller) -> None:
    """Raise CannotMove unless `caller` may signal the process; raises ProcessLookupError."""
    target = read_caller(pid)
    real, effective, _ = caller.uids
    if effective and not {real, effective} & {target.uids[0], target.uids[2]}:
        raise CannotMove("it is not yours", number=errno.EPERM)


def list_obstacles(pid: int, usual: Usual, *, to_leave: bool = True) -> list[str]:
    """Return what keeps process `pid` of this node; raises ProcessLookupError."""
    try:
        found = [*_find_surroundings(pid, usual), *_find_states(pid, usual)]
        if _inode(f"/proc/{pid}/ns/mnt") in usual.namespaces["mnt"] and _root_of(pid) == "/":
            # Otherwise its names are not ours.
            found += [*_find_folder(pid), *_find_descriptors(pid, to_leave=to_leave)]
            found += _find_mappings(pid)
        return list(dict.fromkeys(found))
    except FileNotFoundError as error:
        raise ProcessLookupError(errno.ESRCH, f"there is no process {pid}") from error


def _inode(path: str) -> int:
    return Path(path).stat().st_ino


def _is_kernels(pid: int) -> bool:
    with contextlib.suppress(OSError):
        fields = read_stat(pid)
        return bool(int(fields[_STAT_FLAGS]) & _KERNEL_THREAD)
    return False


def _find_surroundings(pid: int, usual: Usual) -> Iterator[str]:
    for name, inodes in usual.namespaces.items():
        if _inode(f"/proc/{pid}/ns/{name}") not in inodes:
            yield f"it is in a {NAMESPACES[name]} namespace of its own"
    if (root := _root_of(pid)) != "/":
        yield f"it is in a chroot: {root}"


def _root_of(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/root")


def _find_folder(pid: int) -> Iterator[str]:
    folder = Path(f"/proc/{pid}/cwd")
    status = folder.stat()
    if not _moves_along(folder, status) and not os.path.ismount(f"{folder}/."):
        yield f"its working directory is {_describe_own(folder, status)}"


def _moves_along(link: Path, status: os.stat_result) -> bool:
    """Tell whether a file that a process has is the same, or not needed, on another node."""
    # If another node has removed or renamed it, the first look at its name tells this one of it.
    return any(_is_everywhere(os.readlink(link), status) for _ in range(2))


def _is_everywhere(path: str, status: os.stat_result) -> bool:
    if path.endswith(_DELETED):
        if _is_nameless(status):
            return False
        return status.st_dev == SYSROOT.stat().st_dev or path.startswith("/memfd:")
    return is_on_root(path.removeprefix(str(SYSROOT)), status)


def _is_nameless(status: os.stat_result) -> bool:
    """Tell whether something is a folder that is not at its path: it cannot be linked there."""
    return stat.S_ISDIR(status.st_mode) and status.st_nlink > 0


def _describe_own(link: Path, status: os.stat_result) -> str:
    path = os.readlink(link)
    if path.endswith(_DELETED) and _is_nameless(status):
        return f"a folder that another node has renamed: {path.removesuffix(_DELETED)}"
    return f"this node's own: {path}"


def _find_states(pid: int, usual: Usual) -> Iterator[str]:
    lines = (line.partition(":") for line in read_text(f"/proc/{pid}/status").splitlines())
    fields = {name: value.split() for name, _, value in lines}
    if fields["State"][0] in "ZX":
        raise ProcessLookupError(errno.ESRCH, f"process {pid} has ended")
    if tracer := int(fields["TracerPid"][0]):
        yield f"process {tracer} traces it"
    elif fields["State"][0] == "T" and (name := _FOR_THE_TERMINAL.get(find_stop(pid))):
        yield f"it was stopped by {name}: it waits for its turn at the terminal"
    yield from semaphores.find_obstacles(pid)
    # A kernel without our patch does not tell (image/kernel/patches/proc-tracing.patch).
    if fields.get("Tracing") != ["0"]:
        for traced in _find_traced(pid):
            yield f"it traces process {traced}"
    if int(fields["Seccomp"][0]) == 1 or int(fields["Seccomp_filters"][0]) > usual.filters:
        yield "it has a seccomp filter of its own"
    with Path(f"/proc/{pid}/exe").open("rb") as program:
        if program.read(len(_ELF_32)) == _ELF_32:
            yield "it is a 32-bit program"


def _find_traced(pid: int) -> Iterator[int]:
    wanted = b"\nTracerPid:\t%d\n" % pid
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if wanted in _read_start(f"/proc/{name}/status"):
                yield int(name)


def _read_start(path: str) -> bytes:
    """Return the first page of a file in three calls: there are as many files as processes."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, mmap.PAGESIZE)
    finally:
        os.close(fd)


def _find_descriptors(pid: int, *, to_leave: bool) -> Iterator[str]:
    targets = {}
    folder = Path(f"/proc/{pid}/fd")
    for fd in sorted(int(name) for name in os.listdir(folder)):
        with contextlib.suppress(FileNotFoundError):  # it has just been closed
            targets[fd] = os.readlink(folder / str(fd))
    own = {_number(target) for target in targets.values() if target.startswith("socket:")}
    ends: dict[int, sockets.Socket] = {}
    for fd, target in targets.items():
        with contextlib.suppress(FileNotFoundError):
            if what := _describe(folder / str(fd), target, own, to_leave=to_leave):
                yield f"descriptor {fd} is {what}"
            elif to_leave and target.startswith("socket:"):
                ends[fd] = sockets.ask_unix(_number(target))
    connected = {fd: end for fd, end in ends.items() if end.peer or end.is_half(own)}
    yield from _find_in_pairs(pid, connected, own)
    yield from locks.find_obstacles(pid)


def _number(target: str) -> int:
    return int(target.partition("[")[2].rstrip("]"))


def _find_in_pairs(pid: int, ends: Mapping[int, sockets.Socket], own: set[int]) -> Iterator[str]:
    """Tell what keeps ends of socket pairs of a process that leaves, by its descriptors."""
    for fd, others in find_sharers(pid, ends).items():
        # What comes to it would be taken to where the process is, whoever waits for it.
        for other in sorted({other for other, _ in others}):
            yield f"descriptor {fd} is a Unix socket that process {other} has as well"
    for fd, end in ends.items():
        if not end.is_half(own):
            continue
        if not _SENT_NONE.search(read_text(f"/proc/{pid}/fdinfo/{fd}")):
            yield f"descriptor {fd} is a Unix socket with descriptors that are not received yet"
        if _is_told_senders(pid, fd):
            yield f"descriptor {fd} is a Unix socket that is told who sends (SO_PASSCRED)"


def _is_told_senders(pid: int, fd: int) -> bool:
    process = os.pidfd_open(pid)
    try:
        with socket.socket(fileno=get_descriptor(process, fd)) as one:
            return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED))
    finally:
        os.close(process)


def _describe(path: Path, target: str, own: Collection[int], *, to_leave: bool) -> str:
    if target.startswith("socket:"):
        return sockets.find_obstacle(path, _number(target), own, to_leave=to_leave)
    if target.startswith(("anon_inode:", "pidfd:")):
        kind = target.removeprefix("anon_inode:").strip("[]").partition(":")[0]
        return "" if kind in KNOWN else f"a descriptor of {kind}"
    # Ours are not to be looked at: who reads his cantmove has it open, and would read nothing.
    if target.startswith(("pipe:", OURS)):
        return ""
    status = path.stat()
    is_device = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
    if is_device or target.startswith(STREAMS):
        return _describe_device(target, status)
    if _moves_along(path, status) or stat.S_ISFIFO(status.st_mode):
        return ""
    return _describe_own(path, status)


def _describe_device(target: str, status: os.stat_result) -> str:
    if status.st_dev not in {Path(folder).stat().st_dev for folder in ("/dev", "/dev/pts")}:
        kind = "pipe" if stat.S_ISFIFO(status.st_mode) else "device"
        return f"the {kind} {target} of another node"
    return "" if DEVICES.fullmatch(target) else f"the device {target}"


def _find_mappings(pid: int) -> Iterator[str]:
    seen = set()
    for line in os.fsdecode(read_bytes(f"/proc/{pid}/maps")).splitlines():
        found = _LINE.fullmatch(line)
        if found is None or found[2] in seen:
            continue
        seen.add(path := found[2])
        if _SYSV.match(path):
            yield "it shares System V memory"
        elif not path.startswith(("/dev/zero", "/memfd:")) and not _is_mapped_from_root(
            found[1], path
        ):
            yield f"it has mapped what is this node's own: {path}"


def _is_mapped_from_root(device: str, path: str) -> bool:
    if path.startswith(SHARED_MEMORY):
        status = SYSROOT.stat()
        return device == f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    if path.startswith("/dev/"):
        return False
    # The inode in the line is the file's; what has another name now is as good as deleted.
    return path.endswith(_DELETED) or Path(f"{SYSROOT}{path}").exists()
