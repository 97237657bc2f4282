"""Files of /proc that do something: goto moves a process, cantmove says what keeps it.

They are in a folder that no listing shows, and /proc/PID has symlinks to them: for processes of
this node the kernel's (proc-where.patch), for others ours. So who has such a file open finds it by
the same name on every node, and a process may write to its own. The folder is /proc/.ssi/PID-TID,
with the thread that follows the link: writes to one and the same file wait for each other in the
kernel, and who waits there can be neither frozen nor moved.

Its write is then under way when it is frozen. The freeze interrupts it, as a signal does, and it
begins again: on the new node, where the process is where it wants to be; or, if it stayed, here,
where it hears what came of the move that it has begun.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import stat
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from ssi.common.errors import SsiError, UsageError
from ssi.common.nodes import parse_node
from ssi.node.migration.criu import CannotMove
from ssi.node.proc import fuse
from ssi.node.proc.fuse import Attributes, Entry, Op, Request
from ssi.node.proc.places import CANTMOVE, FILES, FOLDER, GOTO, ControlPlace
from ssi.node.process.caller import Caller, read_caller

LONG_S = 3600.0
LAST_S = 5.0
"""From a read of the beginning to that of the end."""

REMEMBERED_S = 60.0
"""So long a move's end waits for who has begun it: a signal's handler may keep him."""

_MODES = {"": FOLDER, GOTO: stat.S_IFREG | 0o222, CANTMOVE: FILES}
"""Who may do what is judged when it is done."""


class Moves(Protocol):
    """What moves processes."""

    async def move(self, pid: int, target: int, caller: Caller) -> None:
        """Move a process; raises SsiError if it stays."""


class Obstacles(Protocol):
    """What knows why processes cannot move."""

    async def ask(self, pid: int, caller: Caller) -> list[str]:
        """Return what keeps a process; raises SsiError."""


@dataclasses.dataclass(slots=True)
class _Begun:
    """A move that somebody has begun by a write."""

    target: int
    task: asyncio.Task[None]


class Control:
    """Answers requests for what is below /proc/.ssi."""

    def __init__(self, moves: Moves, obstacles: Obstacles) -> None:
        self._moves = moves
        self._obstacles = obstacles
        self._begun: dict[tuple[int, int], _Begun] = {}
        """By process and thread that wrote."""
        self._said: dict[tuple[int, int], tuple[float, bytes]] = {}
        self.answers: Mapping[int, Callable[[Request, ControlPlace], Awaitable[bytes]]] = {
            Op.LOOKUP: self._look_up, Op.GETATTR: self._stat, Op.SETATTR: self._stat,
            Op.READ: self._read, Op.WRITE: self._write, Op.OPENDIR: _open, Op.READDIRPLUS: _list,
        }  # fmt: skip
        """What differs from the rest of /proc: each returns an answer's body, or raises OSError."""

    @staticmethod
    def entry_of(place: ControlPlace) -> Entry:
        """Return what is found at `place`."""
        flags = fuse.UNSIZED if place.name == CANTMOVE else 0
        return Entry(Attributes(place.node, _MODES[place.name], flags=flags), LONG_S, 0.0)

    async def _look_up(self, request: Request, place: ControlPlace) -> bytes:
        return self.entry_of(place.child(request.name)).pack()

    async def _stat(self, _: Request, place: ControlPlace) -> bytes:
        return fuse.pack_attributes(self.entry_of(place).attributes, 0.0)

    # -- cantmove --------------------------------------------------------------------------------

    async def _read(self, request: Request, place: ControlPlace) -> bytes:
        _, offset, size = request.reading
        known = self._said.get((place.pid, request.pid))
        if offset and known and time.monotonic() - known[0] < LAST_S:
            data = known[1]
        else:
            data = await self._find_obstacles(request, place.pid)
        return data[offset : offset + size]

    async def _find_obstacles(self, request: Request, pid: int) -> bytes:
        try:
            found = await self._obstacles.ask(pid, read_caller(request.pid))
        except SsiError as error:
            raise _as_os_error(error) from error
        data = "".join(f"{line}\n" for line in found).encode(errors="surrogateescape")
        now = time.monotonic()
        self._said = {key: one for key, one in self._said.items() if now - one[0] < LAST_S}
        self._said[pid, request.pid] = now, data
        return data

    # -- goto ------------------------------------------------------------------------------------

    async def _write(self, request: Request, place: ControlPlace) -> bytes:
        if place.name != GOTO:
            raise PermissionError(errno.EACCES, place.name)
        data = request.written
        try:
            target = parse_node(data.decode("ascii").strip())
        except (UnicodeDecodeError, UsageError) as error:
            raise OSError(errno.EINVAL, "no node") from error
        key = place.pid, request.pid
        begun = self._begun.get(key)
        if begun is None or begun.target != target:
            caller = read_caller(request.pid)
            task = asyncio.create_task(self._moves.move(place.pid, target, caller))
            self._begun[key] = begun = _Begun(target, task)
            task.add_done_callback(lambda _: self._end(key, begun))
        try:
            await asyncio.shield(begun.task)
        except SsiError as error:
            self._forget(key, begun)
            raise _as_os_error(error) from error
        return fuse.pack_written(len(data))

    def _end(self, key: tuple[int, int], begun: _Begun) -> None:
        """Keep the failure of a move for who begins his write again; success he sees himself."""
        if begun.task.cancelled() or not begun.task.exception():
            self._forget(key, begun)
        else:
            loop = asyncio.get_running_loop()
            loop.call_later(REMEMBERED_S, lambda: self._forget(key, begun))

    def _forget(self, key: tuple[int, int], begun: _Begun) -> None:
        if self._begun.get(key) is begun:
            del self._begun[key]


def _as_os_error(error: SsiError) -> OSError:
    number = error.number if isinstance(error, CannotMove) else errno.EIO
    return OSError(number, str(error))


async def _open(_request: Request, _place: ControlPlace) -> bytes:
    return fuse.pack_open(0)


async def _list(_request: Request, _place: ControlPlace) -> bytes:
    return b""
