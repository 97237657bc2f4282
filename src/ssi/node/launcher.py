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

_HEAD = struct.Struct("=I64s")
_START = struct.Struct("=I64siIIIiIII")
_REPLY = struct.Struct("=I64sii")


class _Request(enum.IntEnum):
    START = 1
    FORGET = 2
    LISTENER = 3


class _Reply(enum.IntEnum):
    STARTED = 1
    ENDED = 2
    LISTENS = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """What is to be started, and as whom."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    cwd: str = "/"
    uid: int = 0
    gid: int = 0
    groups: Sequence[int] = ()
    umask: int = 0o22
    nice: int = 0
    pid: int = 0
    """The PID it must have; 0 for any."""


@dataclasses.dataclass(slots=True)
class _Job:
    pid: int
    status: int | None = None
    """As waitpid gives it; None while it runs."""


def _pack_strings(program: Program) -> bytes:
    words = [*program.argv, *(f"{k}={v}" for k, v in program.environment.items()), program.cwd]
    groups = array.array("I", program.groups).tobytes()
    return groups + b"".join(os.fsencode(word) + b"\0" for word in words)


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
        self._listens = False
        self._on_listener: Callable[[int], None] = os.close
        self._changes = Changes()
        self.pid = 0
        """The launcher's own."""

    async def run(self, on_listener: Callable[[int], None]) -> None:
        """Keep connected until cancelled; `on_listener` takes the userland filter's listener."""
        self._on_listener = on_listener
        while True:
            try:
                await self._connect()
            except SsiError as error:
                logger.error("%s: %s", error, error.hint)
                continue
            await self._changes.wait_for(lambda: self._socket is None)
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
        connection.setblocking(False)
        self.pid = read_peer(connection).pid
        self._socket = connection
        asyncio.get_running_loop().add_reader(connection, self._read)
        self._listens = False
        self._send(_HEAD.pack(_Request.LISTENER, b""))
        # What it tells of its jobs came before that.
        await self._changes.wait_for(lambda: self._listens or self._socket is None)
        self._changes.tell()

    async def wait_connected(self) -> None:
        """Wait until it is known what runs."""
        await self._changes.wait_for(lambda: self._socket is not None and self._listens)

    @property
    def keys(self) -> set[str]:
        """Of all that runs, or has ended and is not forgotten."""
        return set(self._jobs)

    def pid_of(self, key: str) -> int | None:
        """Return the PID of what runs under `key`."""
        job = self._jobs.get(key)
        return job.pid if job and job.status is None else None

    async def start(self, key: str, program: Program, fds: Sequence[int]) -> int:
        """Start `program` with `fds` as its descriptors from 0 on; return its PID.

        If something was started under `key` before, that it is. Raises SsiError.
        """
        assert len(key) <= MAX_KEY
        await self.wait_connected()
        if key not in self._jobs:
            self._failed.pop(key, None)
            strings = _as_file(_pack_strings(program))
            try:
                self._send(
                    _START.pack(
                        _Request.START, key.encode(), program.pid, program.uid, program.gid,
                        program.umask, program.nice, len(program.groups), len(program.argv),
                        len(program.environment),
                    ),
                    [strings, *fds],
                )  # fmt: skip
            finally:
                os.close(strings)
            await self._changes.wait_for(lambda: key in self._jobs or key in self._failed)
        if key in self._failed:
            error, at_folder = self._failed.pop(key)
            what = program.cwd if at_folder else program.argv[0]
            raise OSError(error, os.strerror(error), what)
        return self._jobs[key].pid

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
            self._part()
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
            case _Reply.ENDED:
                self._jobs[key] = _Job(pid, status)
            case _Reply.LISTENS:
                (fd,) = fds
                self._on_listener(fd)
                self._listens = True

    def _part(self) -> None:
        """It was killed; what it had started goes on, and nobody hears how it ends."""
        logger.error("the launcher is gone")
        self.close()

    def close(self) -> None:
        """Leave it, and all that it runs, to the next daemon."""
        if self._socket is None:
            return
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._socket = None
        self._jobs.clear()
        self._changes.tell()
