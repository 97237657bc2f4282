"""The launcher's client: what is started in the userland, and how it ended, whoever asked for it.

native/launcher.c is the other side, native/launcher.h the packets. It outlives this daemon: what it
started before this daemon connects is told at once.
"""

from __future__ import annotations

import array
import asyncio
import dataclasses
import enum
import logging
import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ssi.common.changes import Changes
from ssi.common.errors import SsiError
from ssi.node.peer import read_peer
from ssi.node.processes import start_process
from ssi.node.root import SYSROOT, USERLAND
from ssi.node.waiting import wait_until

logger = logging.getLogger(__name__)

PROGRAM = SYSROOT / "usr/lib/ssi/launcher"
SOCKET = Path("/run/ssi/launcher.sock")
CONNECT_S = 30.0
AGAIN_S = 1.0
MAX_KEY = 63
LOST = 255

LISTENER = "listener"
"""The descriptor kept under this key is the userland filter's listener."""

_HEAD = struct.Struct("=I64s")
_START = struct.Struct("=I64siQQIIIIIiIiIIIIII")
_REPLY = struct.Struct("=I64sii")


class _Request(enum.IntEnum):
    START = 1
    FORGET = 2
    KEEP = 3
    END = 4


class _Reply(enum.IntEnum):
    STARTED = 1
    ENDED = 2
    KEPT = 3
    TOLD = 4
    CHANGED = 5


class _Flag(enum.IntFlag):
    SESSION = 1
    NO_NEW_PRIVILEGES = 2
    VISITORS = 4
    IN_PLACE = 8


UNLIMITED = 2**64 - 1

STAYS, LEADS = -1, 0
"""Groups: that of the launcher, and a new one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """What is to be started, and as whom."""

    argv: Sequence[str]
    """Empty for a stand-in, whose only descriptor is the socket that it is to listen on."""
    environment: Mapping[str, str]
    cwd: str = "/"
    uid: int = 0
    gid: int = 0
    groups: Sequence[int] = ()
    umask: int = 0o22
    nice: int = 0
    pid: int = 0
    """The PID it must have; 0 for any."""
    effective: tuple[int, int] | None = None
    """User and group, if they are not the real ones."""
    session: bool = True
    """Whether it leads a session of its own."""
    group: int = LEADS
    """The process group that it joins, within the launcher's session; see STAYS and LEADS."""
    blocked: int = 0
    ignored: int = 0
    """Signals: bit n-1 for signal n."""
    limits: Sequence[tuple[int, int]] = ()
    """Resource limits by number, soft and hard; those of the launcher if there are none."""
    no_new_privileges: bool = False
    visitors: bool = False
    """A stand-in below which `cwd` is /dev."""
    death_signal: int = 0
    """The signal it gets when its parent ends."""


@dataclasses.dataclass(slots=True)
class _Job:
    pid: int
    status: int | None = None
    """As waitpid gives it; None while it runs."""


def _pack_start(
    key: str, program: Program, numbers: Sequence[int], flags: int = 0
) -> tuple[bytes, bytes]:
    """Return the packet and the details."""
    uid, gid = program.effective or (program.uid, program.gid)
    words = [*program.argv, *(f"{k}={v}" for k, v in program.environment.items()), program.cwd]
    if program.session:
        flags |= _Flag.SESSION
    if program.no_new_privileges:
        flags |= _Flag.NO_NEW_PRIVILEGES
    if program.visitors:
        flags |= _Flag.VISITORS
    packet = _START.pack(
        _Request.START, key.encode(), program.pid, program.blocked, program.ignored, program.uid,
        uid, program.gid, gid, program.umask, program.nice, flags, program.group,
        program.death_signal, len(program.limits), len(program.groups), len(numbers),
        len(program.argv), len(program.environment),
    )  # fmt: skip
    values = [value & UNLIMITED for limit in program.limits for value in limit]
    details = (
        array.array("Q", values).tobytes()
        + array.array("I", program.groups).tobytes()
        + array.array("I", numbers).tobytes()
        + b"".join(os.fsencode(word) + b"\0" for word in words)
    )
    return packet, details


def _as_file(data: bytes) -> int:
    fd = os.memfd_create("start", os.MFD_CLOEXEC)
    os.write(fd, data)
    return fd


def check_program() -> None:
    """Raise SsiError if the root, which must be mounted, has no launcher."""
    if not PROGRAM.exists():
        raise SsiError(
            "the root has no launcher, as an older version has built it: `ssi start --fresh` "
            "begins with a new copy",
        )


class Launcher:
    """Starts programs in the userland; one connection, opened again if it breaks."""

    def __init__(self, node: int, path: Path = SOCKET) -> None:
        self._node = node
        self._path = path
        self._socket: socket.socket | None = None
        self._jobs: dict[str, _Job] = {}
        self._failed: dict[str, tuple[int, bool]] = {}
        self._told = False
        self._changes = Changes()
        self.kept: dict[str, int] = {}
        """What this daemon or one before it has given to keep; once connected, all of it. Whoever
        uses a descriptor takes it out and owns it."""
        self.on_change: Callable[[str, int], None] = lambda _key, _status: None
        """Called when something stops, goes on or ends, and at a connection for all of which that
        is true. The status is as waitpid gives it."""
        self.pid = 0
        """The launcher's own."""

    async def run(self) -> None:
        """Keep it running, and connected, until cancelled."""
        while True:
            try:
                await self._connect()
            except SsiError as error:
                logger.error("%s: %s", error, error.hint)
                continue
            await self.wait_gone()
            logger.error("the launcher is gone")
            await asyncio.sleep(AGAIN_S)

    async def _connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        if connection.connect_ex(os.fspath(self._path)):
            start_process([str(PROGRAM), str(self._node), str(USERLAND), str(self._path)])
            # Nothing tells of its socket.
            if not await wait_until(
                lambda: not connection.connect_ex(os.fspath(self._path)), within_s=CONNECT_S
            ):
                raise SsiError(f"{PROGRAM} does not answer", hint="see /run/ssi/daemons.log")
        self._take(connection)
        await self._changes.wait_for(lambda: self._told or self._socket is None)

    async def connect(self) -> None:
        """Connect to a stand-in; raises OSError if it is not there."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        connection.connect(os.fspath(self._path))
        self._take(connection)
        await self._changes.wait_for(lambda: self._told or self._socket is None)

    def _take(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.pid = read_peer(connection).pid
        self._socket = connection
        self._told = False
        asyncio.get_running_loop().add_reader(connection, self._read)

    async def wait_connected(self) -> None:
        """Wait until it is known what runs and what is kept."""
        await self._changes.wait_for(lambda: self._socket is not None and self._told)

    async def wait_gone(self) -> None:
        """Wait until it is gone, or left."""
        await self._changes.wait_for(lambda: self._socket is None)

    @property
    def keys(self) -> set[str]:
        """Of all that runs, or has ended and is not forgotten."""
        return set(self._jobs)

    def pid_of(self, key: str) -> int | None:
        """Return the PID of what runs under `key`."""
        job = self._jobs.get(key)
        return job.pid if job and job.status is None else None

    def job_of(self, key: str) -> tuple[int, int | None] | None:
        """Return PID and status of what was started under `key`; None if nothing was."""
        job = self._jobs.get(key)
        return (job.pid, job.status) if job else None

    async def start(
        self, key: str, program: Program, fds: Sequence[int], numbers: Sequence[int] | None = None
    ) -> int:
        """Start `program` with `fds` as its descriptors from 0 on, or of these numbers.

        Returns its PID. If something was started under `key` before, that it is. Raises OSError,
        SsiError.
        """
        assert len(key) <= MAX_KEY
        await self.wait_connected()
        if key not in self._jobs:
            self._failed.pop(key, None)
            packet, words = _pack_start(key, program, numbers or range(len(fds)))
            details = _as_file(words)
            try:
                self._send(packet, [details, *fds])
            finally:
                os.close(details)
            await self._changes.wait_for(
                lambda: key in self._jobs or key in self._failed or self._socket is None
            )
        if key in self._failed:
            error, at_folder = self._failed.pop(key)
            what = program.cwd if at_folder or not program.argv else program.argv[0]
            raise OSError(error, os.strerror(error), what)
        if key not in self._jobs:
            raise SsiError("the launcher is gone")
        return self._jobs[key].pid

    async def become(self, program: Program, fds: Sequence[int], numbers: Sequence[int]) -> None:
        """Have it, a stand-in, become `program`. Nothing is told any more; raises SsiError."""
        packet, words = _pack_start("", program, numbers, _Flag.IN_PLACE)
        details = _as_file(words)
        try:
            self._send(packet, [details, *fds])
        finally:
            os.close(details)
        await self.wait_gone()

    async def wait(self, key: str) -> int:
        """Wait until what runs under `key` has ended; return its status as waitpid gives it."""
        await self._changes.wait_for(lambda: self._status_of(key) is not None)
        status = self._status_of(key)
        assert status is not None
        return status

    def _status_of(self, key: str) -> int | None:
        job = self._jobs.get(key)
        return job.status if job else LOST << 8

    def forget(self, key: str) -> None:
        """Forget what has ended under `key`, so that it may be used again."""
        job = self._jobs.get(key)
        if job and job.status is not None and self._socket:
            del self._jobs[key]
            self._send(_HEAD.pack(_Request.FORGET, key.encode()))

    def keep(self, key: str, fd: int) -> None:
        """Have `fd` handed to each daemon that comes after this one; it stays this one's, too."""
        self._send(_HEAD.pack(_Request.KEEP, key.encode()), [fd])

    def end(self) -> None:
        """End it, a stand-in."""
        if self._socket:
            self._send(_HEAD.pack(_Request.END, b""))

    def _send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        if self._socket is None:
            raise SsiError("the launcher is gone")
        # It reads at once, and what is sent is small: a full queue is an error of its own.
        self._socket.setblocking(True)
        try:
            socket.send_fds(self._socket, [data], list(fds))
        finally:
            self._socket.setblocking(False)

    def _read(self) -> None:
        assert self._socket
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, _REPLY.size, 1)
        except BlockingIOError:
            return
        except ConnectionError:
            data, fds = b"", []
        if not data:
            # It was killed; what it had started goes on, and nobody hears how it ends.
            self.close()
            return
        kind, name, pid, status = _REPLY.unpack(data)
        self._hear(_Reply(kind), name.rstrip(b"\0").decode(), pid, status, fds)
        self._changes.tell()

    def _hear(self, kind: _Reply, key: str, pid: int, status: int, fds: Sequence[int]) -> None:
        match kind:
            case _Reply.STARTED if pid < 0:
                self._failed[key] = -pid, bool(status)
            case _Reply.STARTED:
                self._jobs[key] = _Job(pid)
            case _Reply.CHANGED:
                self.on_change(key, status)
            case _Reply.ENDED:
                self._jobs[key] = _Job(pid, status)
                self.on_change(key, status)
            case _Reply.KEPT:
                (self.kept[key],) = fds
            case _Reply.TOLD:
                self._told = True

    def close(self) -> None:
        """Leave it, and all that it runs, to the next daemon."""
        if self._socket is None:
            return
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._socket = None
        self._jobs.clear()
        while self.kept:
            os.close(self.kept.popitem()[1])
        self._changes.tell()
