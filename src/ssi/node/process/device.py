"""/dev/ssi: the remote device. A descriptor of it stands for one of a ghost on another node.

The raw protocol of CUSE, a character device in user space: linux/fuse.h. What is done to a
descriptor becomes a request here; each is served by a task of its own, so that one that waits keeps
none. The launcher keeps the device's channel: requests that come while this daemon is restarted
wait for the next one, and the kernel repeats those that this one had taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import enum
import errno
import fcntl
import functools
import logging
import os
import struct
import threading
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

from ssi.node import faults
from ssi.node.fifo.names import read_name
from ssi.node.launcher import Launcher
from ssi.node.unix import names
from ssi.node.unix.names import SocketName

logger = logging.getLogger(__name__)

CHANNEL = "/dev/cuse"
NAME = "ssi"
PATH = f"/dev/{NAME}"
KEY = "cuse"

ROOT_TYPE = "gfs2"
"""The file system whose FIFOs connect all nodes."""

POLLED = Path("/run/ssi/polled")
"""A file for each descriptor that somebody waits for: by what the kernel calls it."""

PIDFD_GETFD = 438  # x86-64

SERVES = f"DEVNAME={NAME}\0FIFOS={ROOT_TYPE}\0FOREIGN=1\0QUEUES=1\0".encode()
"""What the kernel is told of the device."""

KIND_SHIFT = 56

MAX_IO = 32 * 1024
BUFFER = MAX_IO + 4096

WHOSE = 0x80085301
"""An ioctl of our own, answered to this daemon alone: which handle is it?"""

HERE = -1
"""In the place of a handle: the kernel's own pipe is to be opened."""

ERESTARTSYS = 512
"""What a driver says whose read was interrupted. The kernel makes EINTR of it, or begins anew."""


class _Do(enum.IntEnum):
    """What is done to a descriptor."""

    RENAME = 12
    UNLINK = 10
    RMDIR = 11
    OPEN = 14
    READ = 15
    WRITE = 16
    RELEASE = 18
    SYNC = 20
    TMPFILE = 51
    INTERRUPT = 36
    BMAP = 37
    IOCTL = 39
    POLL = 40
    SEEK = 46
    SYNCFS = 50
    INIT = 4096


NAMES = {_Do.RENAME, _Do.UNLINK, _Do.RMDIR, _Do.TMPFILE, _Do.SYNCFS}
"""Of message queues (image/kernel/patches/mqueue-elsewhere.patch); the last is of an inode."""

NOTIFY_POLL, NOTIFY_RESEND = 1, 7
RESENT = 1 << 63

UNRESTRICTED_IOCTL = 1
DIRECT_IO = 1
STREAM = 1 << 4
FIFO_HERE = 1 << 16
RETRY = 4
WATCHED = 1

VERSION = (7, 31)

_HEAD = struct.Struct("=IIQQIIIHH")
_REPLY = struct.Struct("=IiQ")
_HANDLE = struct.Struct("=Q")
_OPEN = struct.Struct("=II")
_OPENED = struct.Struct("=QII")
_RELEASE = struct.Struct("=QIIQ")
_IO = struct.Struct("=QQIIQII")
_IOCTL = struct.Struct("=QIIQII")
_CONTROLLED = struct.Struct("=iIII")
_PLACE = struct.Struct("=QQ")
_POLL = struct.Struct("=QQII")
_PAIR = struct.Struct("=II")
_SEEK = struct.Struct("=QqII")
_OFFSET = struct.Struct("=Q")
_INIT = struct.Struct("=IIIIIIII40x")


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """Of a request: a number, negative for an error, and data."""

    value: int
    data: bytes = b""


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """A request for a descriptor."""

    number: int
    """The same when it is repeated."""
    handle: int
    thread: int
    """Who does it."""
    nonblock: bool
    offset: int = 0
    """Of a read or write, where the device has any."""


@dataclasses.dataclass(frozen=True, slots=True)
class Control:
    """What an ioctl's argument is: how much it points to, there and back, or the value itself."""

    given: int = 0
    returned: int = 0
    by_value: bool = False
    sets: bool = False
    """Whether a process of the background is stopped for it."""


_SETTINGS, _SETTINGS_2, _OLD_SETTINGS = 36, 44, 18  # termios, termios2, termio

CONTROLS = {
    0x5401: Control(returned=_SETTINGS),  # TCGETS
    **{number: Control(_SETTINGS, sets=True) for number in (0x5402, 0x5403, 0x5404)},  # TCSETS…
    0x5405: Control(returned=_OLD_SETTINGS),  # TCGETA
    **{number: Control(_OLD_SETTINGS, sets=True) for number in (0x5406, 0x5407, 0x5408)},
    0x802C542A: Control(returned=_SETTINGS_2),  # TCGETS2
    **{number: Control(_SETTINGS_2, sets=True) for number in (0x402C542B, 0x402C542C, 0x402C542D)},
    # TCSBRK, TCXONC, TCFLSH, TCSBRKP
    **{number: Control(by_value=True, sets=True) for number in (0x5409, 0x540A, 0x540B, 0x5425)},
    0x540F: Control(returned=4),  # TIOCGPGRP
    0x5410: Control(4, sets=True),  # TIOCSPGRP
    0x5411: Control(returned=4),  # TIOCOUTQ
    0x5413: Control(returned=8),  # TIOCGWINSZ
    0x5414: Control(8),  # TIOCSWINSZ
    0x541B: Control(returned=4),  # FIONREAD
    0x5424: Control(returned=4),  # TIOCGETD
    0x5429: Control(returned=4),  # TIOCGSID
}


def _gets(size: int, *commands: int) -> dict[int, Control]:
    return {command: Control(returned=size) for command in commands}


def _sets(size: int, *commands: int) -> dict[int, Control]:
    return {command: Control(size) for command in commands}


def _does(*commands: int) -> dict[int, Control]:
    return {command: Control(by_value=True) for command in commands}


DEVICE_CONTROLS = {
    **CONTROLS,
    **_gets(4, 0x5415, 0x5419),  # TIOCMGET, TIOCGSOFTCAR
    **_sets(4, 0x5416, 0x5417, 0x5418, 0x541A),  # TIOCMBIS, TIOCMBIC, TIOCMSET, TIOCSSOFTCAR
    **_sets(4, 0x5420, 0x5423),  # TIOCPKT, TIOCSETD
    **_sets(1, 0x5412),  # TIOCSTI
    **_gets(4, 0x80045430, 0x80045432, 0x80045438, 0x80045439, 0x80045440),  # TIOCGPTN…GEXCL
    **_sets(4, 0x40045431),  # TIOCSPTLCK
    **_gets(80, 0x545D),  # TIOCGICOUNT
    # TIOCEXCL, TIOCNXCL, TIOCSBRK, TIOCCBRK, TIOCVHANGUP
    **_does(0x540C, 0x540D, 0x5427, 0x5428, 0x5437),
    **_gets(8, 0x80081272, 0x1260, 0x1263, 0x80081280),  # BLKGETSIZE64, …SIZE, BLKRAGET, …DISKSEQ
    **_gets(4, 0x1268, 0x127B, 0x80081270),  # BLKSSZGET, BLKPBSZGET, BLKBSZGET
    **_gets(4, 0x125E, 0x1278, 0x1279, 0x127A, 0x127C),  # BLKROGET, BLKIOMIN, BLKIOOPT, …
    **_gets(2, 0x1267, 0x127E),  # BLKSECTGET, BLKROTATIONAL
    **_sets(4, 0x125D),  # BLKROSET
    **_sets(16, 0x1277, 0x127F),  # BLKDISCARD, BLKZEROOUT
    **_does(0x1261, 0x125F),  # BLKFLSBUF, BLKRRPART
    **_gets(16, 0x0301),  # HDIO_GETGEO
    **_gets(232, 0x4C05),  # LOOP_GET_STATUS64
    **_sets(232, 0x4C04),
    **_gets(168, 0x4C03),
    **_does(0x4C01, 0x4C07, 0x4C82),  # LOOP_CLR_FD, LOOP_SET_CAPACITY, LOOP_CTL_GET_FREE
    **_gets(4, 0x80045200),  # RNDGETENTCNT
}
"""Of devices by their names. What takes descriptors or addresses is not among them."""


class Kind(enum.IntEnum):
    """What a handle is of: its upper bits."""

    FILE = 0
    PROCESS = 1
    FIFO = 2
    DEVICE = 3
    QUEUE = 4

    @classmethod
    def of(cls, handle: int) -> Kind:
        """Return the kind of a handle."""
        return cls(handle >> KIND_SHIFT)


Reopen = Callable[[int, int], Awaitable[int | None]]
"""Given a request's number and a thread that opens the device by name, returns the handle for it;
None if it may not."""


class Owner(Protocol):
    """Who knows what the handles of a kind are of."""

    async def read(self, wanted: Wanted, size: int) -> Result:
        """Read."""

    async def write(self, wanted: Wanted, data: bytes) -> Result:
        """Write."""

    async def control(
        self, wanted: Wanted, command: int, control: Control, argument: int, data: bytes
    ) -> Result:
        """Do an ioctl."""

    async def poll(self, wanted: Wanted, events: int, notify: Callable[[], None] | None) -> Result:
        """Return which events there are; `notify` is to be called when there are some."""

    async def cancel(self, wanted: Wanted) -> None:
        """Have a request that is under way end soon."""

    def release(self, handle: int) -> None:
        """Take it that one descriptor of this handle is closed."""


class FifoOwner(Owner, Protocol):
    """Who is asked when a FIFO of the root is opened (image/kernel/patches/cuse-fifos.patch)."""

    async def open(self, number: int, name: str, flags: int) -> int:
        """Return a handle, or HERE; raises OSError."""

    async def close(self, handle: int) -> None:
        """Close it; the last descriptor is closed."""

    async def settle(self, number: int) -> None:
        """Take it that the kernel has the answer to a request."""

    def end_pipe(self, number: int, name: str, opens: int) -> None:
        """Take it that a pipe of the kernel is gone which so many opens were for."""


class DeviceOwner(Owner, Protocol):
    """Who does what is done to devices of other nodes (image/kernel/patches/fuse-foreign.patch)."""

    async def open(self, wanted: Wanted, place: int, flags: int) -> tuple[int, bool]:
        """Return a handle, and whether it has no offsets; raises OSError."""

    async def close(self, handle: int) -> None:
        """Close it; the last descriptor is closed."""

    async def seek(self, wanted: Wanted, whence: int) -> Result:
        """Return the new offset."""

    async def sync(self, wanted: Wanted) -> Result:
        """Have written what was written."""

    async def settle(self, number: int) -> None:
        """Take it that the kernel has the answer to a request."""


@dataclasses.dataclass(frozen=True, slots=True)
class QueueAnswer:
    """To who opens a message queue: a handle and what there is to say of it, or HERE."""

    handle: int
    about: bytes = bytes(16)


class QueueOwner(Owner, Protocol):
    """Who is asked for message queues that this kernel does not have."""

    async def open(self, wanted: Wanted, name: bytes, flags: int) -> QueueAnswer:
        """Open one; raises OSError."""

    async def end_making(self, name: bytes) -> None:
        """Take it that one that was to be made here has been, or not."""

    async def end_name(self, name: bytes) -> None:
        """Take it that one of this kernel has been removed."""

    async def tell_change(self, inode: int) -> None:
        """Return when other nodes know what one of this kernel's is now."""

    async def unlink(self, wanted: Wanted, name: bytes) -> None:
        """Remove another node's; raises OSError."""

    async def control_queue(
        self, wanted: Wanted, command: int, length: int, body: bytes
    ) -> tuple[Result, int]:
        """Send, receive and so on; return what came of it, and a message's priority."""

    async def close(self, handle: int) -> None:
        """Close it; the last descriptor is closed."""

    async def settle(self, number: int) -> None:
        """Take it that the kernel has the answer to a request."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sought:
    """A Unix socket that somebody looks for, and that this kernel does not have."""

    number: int
    """The request's."""
    thread: int
    """Who looks for it."""
    inode: int
    file: bytes
    """Its handle, as the kernel has it."""
    kind: int
    """SOCK_STREAM and so on."""
    nonblock: bool
    own: SocketName
    """Of the socket from which it is looked for."""


FindSocket = Callable[[Sought], Awaitable[int]]
"""Returns the number of a socket of this node that stands for it; raises OSError. It is cancelled
if who looks for it is interrupted. image/kernel/patches/unix-elsewhere.patch"""


def get_descriptor(process: int, fd: int) -> int:
    """Return a duplicate of another process's descriptor; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = libc.syscall(*map(ctypes.c_long, (PIDFD_GETFD, process, fd, 0)))
    if found < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return int(found)


class Device:
    """The device of this node."""

    def __init__(self) -> None:
        self.owners: dict[Kind, Owner] = {}
        self.on_answered: list[Callable[[int], Awaitable[None]]] = []
        """Who is told that the kernel has the answer to a request: it is not repeated any more."""
        self._reopen: Reopen | None = None
        self._fifos: FifoOwner | None = None
        self._foreign: DeviceOwner | None = None
        self._find_socket: FindSocket | None = None
        self._queues: QueueOwner | None = None
        self._finding: dict[int, asyncio.Future[int]] = {}
        self._fd = -1
        self._opening: dict[int, int] = {}
        """The handle that each thread of ours is opening the device for."""
        self._made = asyncio.Event()
        self._under_way: dict[int, Wanted] = {}
        self._polled: dict[int, set[int]] = {}
        """Whom the kernel would tell of events, by handle."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, launcher: Launcher, reopen: Reopen) -> None:
        """Make it, or take it over from the daemon before this one; all owners are known."""
        self._reopen = reopen
        fd = launcher.kept.pop(KEY, None)
        if fd is None:
            fd = os.open(CHANNEL, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            launcher.keep(KEY, fd)
            self._fd = fd
        else:
            self._fd = fd
            # What that one had taken and not answered; nothing, if it was not even made.
            with contextlib.suppress(OSError):
                os.write(fd, _REPLY.pack(_REPLY.size, NOTIFY_RESEND, 0))
                self._made.set()
        asyncio.get_running_loop().add_reader(fd, self._read)
        await self._made.wait()
        self._wake_all()
        # Who may use it is decided when it is opened.
        Path(PATH).chmod(0o666)

    def serve_fifos(self, owner: FifoOwner) -> None:
        """Have `owner` asked about the FIFOs of the root."""
        self._fifos = self.owners[Kind.FIFO] = owner
        self.on_answered.append(owner.settle)

    def serve_foreign(self, owner: DeviceOwner) -> None:
        """Have `owner` do what is done to the devices of other nodes."""
        self._foreign = self.owners[Kind.DEVICE] = owner
        self.on_answered.append(owner.settle)

    def serve_queues(self, owner: QueueOwner) -> None:
        """Have `owner` asked about message queues of other nodes."""
        self._queues = self.owners[Kind.QUEUE] = owner
        self.on_answered.append(owner.settle)

    def serve_sockets(self, find: FindSocket) -> None:
        """Have `find` asked for Unix sockets of the root that this kernel does not have."""
        self._find_socket = find

    def _wake_all(self) -> None:
        """Have asked again who waited for events that the daemon before this one watched for."""
        POLLED.mkdir(mode=0o700, exist_ok=True)
        for path in POLLED.iterdir():
            path.unlink()
            self._notify(int(path.name))

    async def open(self, handle: int, flags: int) -> int:
        """Return a descriptor of the device for `handle`."""

        def open_it() -> int:
            # By the thread the request is known as ours.
            self._opening[threading.get_native_id()] = handle
            try:
                return os.open(PATH, flags | os.O_CLOEXEC | os.O_NOCTTY)
            finally:
                del self._opening[threading.get_native_id()]

        return await asyncio.get_running_loop().run_in_executor(None, open_it)

    async def find_handle(self, pid: int, fd: int) -> int:
        """Return the handle of a process's descriptor of the device; raises OSError."""

        def find_it() -> int:
            process = os.pidfd_open(pid)
            try:
                mine = get_descriptor(process, fd)
            finally:
                os.close(process)
            try:
                if os.readlink(f"/proc/self/fd/{mine}") != PATH:
                    raise OSError(errno.ENXIO, "none of the remote device")
                (handle,) = _HANDLE.unpack(fcntl.ioctl(mine, WHOSE, bytes(_HANDLE.size)))
                return int(handle)
            finally:
                os.close(mine)

        return await asyncio.get_running_loop().run_in_executor(None, find_it)

    def _read(self) -> None:
        try:
            packet = os.read(self._fd, BUFFER)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            # ENOENT: its caller has been killed before we came.
            if error.errno != errno.ENOENT:
                logger.exception("%s", CHANNEL)
                asyncio.get_running_loop().remove_reader(self._fd)
            return
        _, operation, unique, node, _, _, thread, _, _ = _HEAD.unpack_from(packet)
        body = packet[_HEAD.size :]
        if operation == _Do.INTERRUPT:
            self._interrupt(*_HANDLE.unpack_from(body))
            return
        serving = self._choose(operation, unique, node, thread, body)
        task = asyncio.get_running_loop().create_task(
            self._attend(operation, unique, serving), name=f"{PATH} {operation}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _choose(
        self, operation: int, unique: int, node: int, thread: int, body: bytes
    ) -> Coroutine[Any, Any, tuple[int, bytes]]:
        if operation == _Do.BMAP:
            return self._serve_socket(unique, node, thread, body)
        if operation in NAMES:
            return self._serve_name(operation, unique, thread, body)
        if operation == _Do.OPEN and node and len(body) == _OPEN.size:
            return self._open_foreign(unique, node, thread, body)
        if operation == _Do.RELEASE:
            closes = {Kind.QUEUE: self._close_queue, Kind.DEVICE: self._close_foreign}
            if close := closes.get(Kind.of(*_HANDLE.unpack_from(body))):
                return close(body)
        if node and operation in {_Do.OPEN, _Do.RELEASE}:
            return self._serve_fifo(operation, unique, body)
        return self._serve(operation, unique, thread, body)

    def _interrupt(self, unique: int) -> None:
        if finding := self._finding.get(unique):
            finding.cancel()
        if wanted := self._under_way.get(unique):
            cancelling = self._owner_of(wanted.handle).cancel(wanted)
            task = asyncio.get_running_loop().create_task(cancelling)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _answer(self, unique: int, data: bytes = b"", error: int = 0) -> None:
        try:
            os.write(self._fd, _REPLY.pack(_REPLY.size + len(data), -error, unique) + data)
        except OSError as failure:
            if failure.errno != errno.ENOENT:
                logger.warning("%s: answering: %s", PATH, failure)

    async def _attend(
        self, operation: int, unique: int, serving: Coroutine[Any, Any, tuple[int, bytes]]
    ) -> None:
        try:
            value, data = await serving
        except OSError as error:
            value, data = -(error.errno or errno.EIO), b""
        except Exception:
            logger.exception("%s: operation %d", PATH, operation)
            value, data = -errno.EIO, b""
        finally:
            self._under_way.pop(unique, None)
        # Who reads or writes for a signal's sake begins again, or hears EINTR from his kernel.
        if value == -errno.EINTR:
            value = -ERESTARTSYS
        self._answer(unique, b"" if value < 0 else data, max(0, -value))
        if operation == _Do.INIT:
            self._made.set()
        for tell in self.on_answered:
            await tell(unique & ~RESENT)

    async def _serve(
        self, operation: int, unique: int, thread: int, body: bytes
    ) -> tuple[int, bytes]:
        match operation:
            case _Do.INIT:
                words = _INIT.pack(*VERSION, 0, UNRESTRICTED_IOCTL, MAX_IO, MAX_IO, 0, 0)
                answer = 0, words + SERVES
            case _Do.OPEN:
                answer = await self._open(unique & ~RESENT, thread)
            case _Do.READ | _Do.WRITE:
                answer = await self._transfer(operation, unique, thread, body)
            case _Do.RELEASE:
                answer = self._release(*_HANDLE.unpack_from(body))
            case _Do.IOCTL:
                answer = await self._control(unique, thread, body)
            case _Do.POLL:
                answer = await self._poll(unique, thread, body)
            case _Do.SEEK:
                answer = await self._seek(unique, thread, body)
            case _Do.SYNC:
                answer = await self._sync(unique, thread, body)
            case _:
                answer = -errno.ENOSYS, b""
        return answer

    async def _serve_fifo(self, operation: int, unique: int, body: bytes) -> tuple[int, bytes]:
        assert self._fifos
        number = unique & ~RESENT
        if operation == _Do.OPEN:
            flags, _ = _OPEN.unpack_from(body)
            none_yet = Kind.FIFO << KIND_SHIFT
            self._under_way[unique] = Wanted(number, none_yet, 0, bool(flags & os.O_NONBLOCK))
            handle = await self._fifos.open(number, read_name(body[_OPEN.size :]), flags)
            if handle == HERE:
                return 0, _OPENED.pack(0, FIFO_HERE, 0)
            return 0, _OPENED.pack(handle, DIRECT_IO, 0)
        handle, opens, _, _ = _RELEASE.unpack_from(body)
        if handle:
            self._forget_polled(handle)
            await self._fifos.close(handle)
        else:
            self._fifos.end_pipe(number, read_name(body[_RELEASE.size :]), opens)
        return 0, b""

    async def _open_foreign(
        self, unique: int, place: int, thread: int, body: bytes
    ) -> tuple[int, bytes]:
        assert self._foreign
        flags, _ = _OPEN.unpack_from(body)
        none_yet = Kind.DEVICE << KIND_SHIFT
        wanted = Wanted(unique & ~RESENT, none_yet, thread, bool(flags & os.O_NONBLOCK))
        self._under_way[unique] = wanted
        handle, streams = await self._foreign.open(wanted, place, flags)
        return 0, _OPENED.pack(handle, DIRECT_IO | (STREAM if streams else 0), 0)

    async def _close_foreign(self, body: bytes) -> tuple[int, bytes]:
        assert self._foreign
        handle, _, _, _ = _RELEASE.unpack_from(body)
        self._forget_polled(handle)
        await self._foreign.close(handle)
        return 0, b""

    async def _serve_name(
        self, operation: int, unique: int, thread: int, body: bytes
    ) -> tuple[int, bytes]:
        assert self._queues
        none_yet = Kind.QUEUE << KIND_SHIFT
        wanted = Wanted(unique & ~RESENT, none_yet, thread, nonblock=False)
        self._under_way[unique] = wanted
        name = body.removesuffix(b"\0")
        match operation:
            case _Do.TMPFILE:
                flags, _ = _OPEN.unpack_from(body)
                answer = await self._queues.open(wanted, name[_OPEN.size :], flags)
                if answer.handle == HERE:
                    return 0, _OPENED.pack(0, FIFO_HERE, 0) + answer.about
                return 0, _OPENED.pack(answer.handle, DIRECT_IO, 0) + answer.about
            case _Do.RENAME:
                await self._queues.end_making(name)
            case _Do.RMDIR:
                await self._queues.end_name(name)
            case _Do.SYNCFS:
                await self._queues.tell_change(*_HANDLE.unpack(body))
            case _:
                await self._queues.unlink(wanted, name)
        return 0, b""

    async def _close_queue(self, body: bytes) -> tuple[int, bytes]:
        assert self._queues
        handle, _, _, _ = _RELEASE.unpack_from(body)
        self._forget_polled(handle)
        await self._queues.close(handle)
        return 0, b""

    async def _control_queue(self, unique: int, thread: int, body: bytes) -> tuple[int, bytes]:
        assert self._queues
        handle, flags, command, length, given, returned = _IOCTL.unpack_from(body)
        wanted = Wanted(unique & ~RESENT, handle, thread, bool(flags & os.O_NONBLOCK))
        self._under_way[unique] = wanted
        data = body[_IOCTL.size : _IOCTL.size + given]
        result, priority = await self._queues.control_queue(wanted, command, length, data)
        return min(0, result.value), _CONTROLLED.pack(priority, 0, 0, 0) + result.data[:returned]

    async def _seek(self, unique: int, thread: int, body: bytes) -> tuple[int, bytes]:
        handle, offset, whence, _ = _SEEK.unpack_from(body)
        if Kind.of(handle) is not Kind.DEVICE or not self._foreign:
            return -errno.ESPIPE, b""
        wanted = Wanted(unique & ~RESENT, handle, thread, nonblock=True, offset=offset)
        self._under_way[unique] = wanted
        result = await self._foreign.seek(wanted, whence)
        return min(0, result.value), _OFFSET.pack(max(0, result.value))

    async def _sync(self, unique: int, thread: int, body: bytes) -> tuple[int, bytes]:
        (handle,) = _HANDLE.unpack_from(body)
        if Kind.of(handle) is not Kind.DEVICE or not self._foreign:
            return -errno.EINVAL, b""
        wanted = Wanted(unique & ~RESENT, handle, thread, nonblock=False)
        self._under_way[unique] = wanted
        return (await self._foreign.sync(wanted)).value, b""

    async def _serve_socket(
        self, unique: int, inode: int, thread: int, body: bytes
    ) -> tuple[int, bytes]:
        assert self._find_socket
        flags, kind = _OPEN.unpack_from(body)
        file, own = body[_OPEN.size : -names.SIZE], SocketName.unpack(body[-names.SIZE :])
        sought = Sought(
            unique & ~RESENT, thread, inode, file, kind, bool(flags & os.O_NONBLOCK), own
        )
        self._finding[unique] = finding = asyncio.ensure_future(self._find_socket(sought))
        try:
            await asyncio.wait([finding])
        finally:
            finding.cancel()
            del self._finding[unique]
        if finding.cancelled():
            return -errno.EINTR, b""
        return 0, _OPENED.pack(finding.result(), 0, 0)

    def _remember_polled(self, handle: int, kernel_handle: int) -> None:
        if kernel_handle not in (polled := self._polled.setdefault(handle, set())):
            polled.add(kernel_handle)
            (POLLED / str(kernel_handle)).touch()

    def _forget_polled(self, handle: int) -> None:
        for kernel_handle in self._polled.pop(handle, ()):
            (POLLED / str(kernel_handle)).unlink(missing_ok=True)

    def _owner_of(self, handle: int) -> Owner:
        return self.owners[Kind.of(handle)]

    def _release(self, handle: int) -> tuple[int, bytes]:
        self._forget_polled(handle)
        self._owner_of(handle).release(handle)
        return 0, b""

    async def _transfer(
        self, operation: int, unique: int, thread: int, body: bytes
    ) -> tuple[int, bytes]:
        handle, offset, size, _, _, flags, _ = _IO.unpack_from(body)
        wanted = Wanted(unique & ~RESENT, handle, thread, bool(flags & os.O_NONBLOCK), offset)
        self._under_way[unique] = wanted
        if operation == _Do.READ:
            result = await self._owner_of(handle).read(wanted, size)
            return result.value, result.data
        result = await self._owner_of(handle).write(wanted, body[_IO.size : _IO.size + size])
        return result.value, _PAIR.pack(max(0, result.value), 0)

    async def _poll(self, unique: int, thread: int, body: bytes) -> tuple[int, bytes]:
        handle, kernel_handle, flags, events = _POLL.unpack_from(body)
        wanted = Wanted(unique & ~RESENT, handle, thread, nonblock=True)
        self._under_way[unique] = wanted
        notify = None
        if flags & WATCHED:
            self._remember_polled(handle, kernel_handle)
            notify = functools.partial(self._notify, kernel_handle)
        result = await self._owner_of(handle).poll(wanted, events, notify)
        return result.value, _PAIR.pack(max(0, result.value), 0)

    async def _open(self, number: int, thread: int) -> tuple[int, bytes]:
        handle = self._opening.get(thread)
        if handle is not None:
            faults.hit("device-opening")
        if handle is None and self._reopen:
            handle = await self._reopen(number, thread)
        if handle is None:
            return -errno.ENXIO, b""
        return 0, _OPENED.pack(handle, DIRECT_IO, 0)

    async def _control(self, unique: int, thread: int, body: bytes) -> tuple[int, bytes]:
        handle, _, command, argument, given, returned = _IOCTL.unpack_from(body)
        if Kind.of(handle) is Kind.QUEUE:
            return await self._control_queue(unique, thread, body)
        if command == WHOSE and Path(f"/proc/self/task/{thread}").exists():
            return self._tell_whose(handle, argument, returned)
        controls = DEVICE_CONTROLS if Kind.of(handle) is Kind.DEVICE else CONTROLS
        control = controls.get(command)
        if control is None:
            return -errno.ENOTTY, b""
        if (control.given, control.returned) != (given, returned):
            # The kernel is to fetch what the argument points to, and ask again.
            places = b"".join(
                _PLACE.pack(argument, size) for size in (control.given, control.returned) if size
            )
            count = (int(bool(control.given)), int(bool(control.returned)))
            return 0, _CONTROLLED.pack(0, RETRY, *count) + places
        wanted = Wanted(unique & ~RESENT, handle, thread, nonblock=False)
        self._under_way[unique] = wanted
        data = body[_IOCTL.size : _IOCTL.size + given]
        result = await self._owner_of(handle).control(wanted, command, control, argument, data)
        return result.value, _CONTROLLED.pack(result.value, 0, 0, 0) + result.data[:returned]

    def _tell_whose(self, handle: int, argument: int, returned: int) -> tuple[int, bytes]:
        if returned != _HANDLE.size:
            return 0, _CONTROLLED.pack(0, RETRY, 0, 1) + _PLACE.pack(argument, _HANDLE.size)
        return 0, _CONTROLLED.pack(0, 0, 0, 0) + _HANDLE.pack(handle)

    def _notify(self, kernel_handle: int) -> None:
        """Tell the kernel that there are events: it asks which."""
        with contextlib.suppress(OSError):
            os.write(
                self._fd,
                _REPLY.pack(_REPLY.size + 8, NOTIFY_POLL, 0) + _HANDLE.pack(kernel_handle),
            )
