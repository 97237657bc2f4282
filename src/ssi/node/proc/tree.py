"""What is in /proc, and who sees what: the kernel's own, and the processes of other nodes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
import stat
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from pathlib import Path

from ssi.node.pids import RANGE
from ssi.node.proc import fuse
from ssi.node.proc.control import Control
from ssi.node.proc.files import Files
from ssi.node.proc.fuse import Attributes, Entry, Op, Request
from ssi.node.proc.own import Placeholders
from ssi.node.proc.places import (
    CANTMOVE,
    CONTROL,
    FILES,
    FOLDER,
    GOTO,
    LINK,
    NAMES,
    NAMESPACES,
    SYSTEM,
    SYSVIPC,
    TABLE,
    TABLES,
    ControlPlace,
    Place,
    control_of,
    is_number,
    link_of,
    local_node,
    place_of,
    system_node,
    system_of,
)
from ssi.node.proc.rows import HZ, Row
from ssi.node.proc.system import System
from ssi.node.proc.table import Table

LONG_S = 3600.0
SHORT_S = 1.0
"""A process that has ended may seem to be there for so long, unless /proc is listed."""

CLUSTER, LOCAL = 0, 1
"""Handles of folders: what is shown of the root."""

OPT_OUT = b"SSI_PROC=local"
SLOW_S = 1.0

PIDS = 1 << 32
"""In a listing of the root: the offset of PID 0. Before it is the system's."""

Notify = Callable[[list[bytes]], Awaitable[None]]


def _read_environment(thread: int) -> bytes:
    return Path(f"/proc/{thread}/environ").read_bytes()


async def _wants_local(request: Request) -> bool:
    """Tell whether the caller has opted out."""
    if not request.pid:
        return False
    # Another of his threads may hold his memory for as long as the root is held.
    reading = asyncio.get_running_loop().run_in_executor(None, _read_environment, request.pid)
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(SLOW_S):
            return OPT_OUT in (await reading).split(b"\0")
    return False


async def _agree(_: Request) -> bytes:
    return b""


async def _stat_system(_: Request) -> bytes:
    # No blocks: df does not show it.
    return bytes(80)


class Tree:
    """Answers the kernel's requests."""

    def __init__(
        self, table: Table, files: Files, system: System, placeholders: Placeholders,
        control: Control, notify: Notify, *, restarted: bool,
    ) -> None:  # fmt: skip
        """`restarted`: the kernel may have cached what an earlier daemon has told."""
        self._table = table
        self._files = files
        self._system = system
        self._placeholders = placeholders
        self._control = control
        self._notify = notify
        self._restarted = restarted
        self._sizes: dict[Place, int] = {}
        """Of the files of TABLE that the kernel may have cached."""
        self._modes: dict[str, int] = {}
        self._answers: Mapping[int, Callable[[Request], Awaitable[bytes]]] = {
            Op.LOOKUP: self._answer_lookup, Op.GETATTR: self._answer_getattr,
            Op.READLINK: self._read_link, Op.READ: self._answer_read, Op.OPENDIR: self._open,
            Op.READDIRPLUS: self._list, Op.RELEASEDIR: _agree, Op.DESTROY: _agree,
            Op.STATFS: _stat_system,
        }  # fmt: skip

    async def answer(self, request: Request) -> bytes:
        """Return the body of the answer; raises OSError."""
        place = control_of(request.node)
        if place and request.op in self._control.answers:
            return await self._control.answers[request.op](request, place)
        answer = self._answers.get(request.op)
        if answer is None:
            raise OSError(errno.ENOSYS, f"FUSE request {request.op}")
        return await answer(request)

    async def _answer_lookup(self, request: Request) -> bytes:
        place = place_of(request.node)
        if place and not place.name and request.name not in NAMES:
            # ps looks for a `ctty` in every folder.
            return fuse.pack_nothing(LONG_S)
        return (await self._look_up(request)).pack()

    async def _answer_getattr(self, request: Request) -> bytes:
        return fuse.pack_attributes(*await self._stat(request))

    async def _answer_read(self, request: Request) -> bytes:
        _, offset, size = request.reading
        return (await self._read(request, fresh=not offset))[offset : offset + size]

    async def _read_link(self, request: Request) -> bytes:
        place, node, _ = self._find(request.node)
        if place.name in {GOTO, CANTMOVE}:
            return link_of(place, request.pid)
        return await self._files.read(node, place, request.uid, fresh=True)

    async def _open(self, request: Request) -> bytes:
        local = request.node == fuse.ROOT and await _wants_local(request)
        return fuse.pack_open(LOCAL if local else CLUSTER)

    # -- what there is ---------------------------------------------------------------------------

    def _is_local(self, pid: int) -> bool:
        if pid in self._placeholders.arriving:
            return True
        return pid not in self._placeholders.hidden and Path(f"/proc/{pid}").exists()

    async def _refresh(self) -> None:
        await self._table.refresh(self._tell)

    def _find(self, number: int) -> tuple[Place, int, Row]:
        """Return the place with this number, and the node and row of its process."""
        place = place_of(number)
        found = self._table.find(place.pid) if place else None
        if place is None or found is None:
            raise ProcessLookupError(errno.ESRCH, "it has ended")
        return place, *found

    def _render(self, place: Place, node: int, row: Row) -> bytes:
        return row.render(place.name, node, self._table.shift_of(node))

    async def _tell(self, changed: Collection[int]) -> None:
        """Have the kernel forget, or know, what has changed."""
        notices = []
        for pid in changed:
            found = self._table.find(pid)
            for place in (Place(pid, name) for name in TABLE):
                size = self._sizes.get(place)
                if size is None and not self._restarted:
                    continue
                data = self._render(place, *found) if found else b""
                if size is not None and found and len(data) >= size:
                    notices.append(fuse.pack_store(place.node, data))
                    self._sizes[place] = len(data)
                else:
                    notices.append(fuse.pack_inval(place.node))
                    self._sizes.pop(place, None)
        self._restarted = False
        await self._notify(notices)

    # -- attributes ------------------------------------------------------------------------------

    def _local(self, name: str, name_s: float) -> Entry:
        if name.isdigit():
            mode = FOLDER
        elif name in self._modes:
            mode = self._modes[name]
        else:
            mode = self._modes[name] = os.lstat(f"/proc/{name}").st_mode
        attributes = Attributes(local_node(name), mode, flags=fuse.ELSEWHERE)
        return Entry(attributes, name_s, LONG_S)

    def _foreign(self, place: Place, node: int, row: Row) -> Entry:
        """Return the entry of something of another node's process, without its content's size."""
        began = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        # Unlike its stat, this can be before our boot.
        ticks = row.start + self._table.shift_of(node)
        unsized = stat.S_ISREG(place.mode) and not place.is_tabled
        attributes = Attributes(
            place.node, place.mode, 0, row.memory.uid, row.memory.gid,
            max(0, int(began + ticks / HZ)) * fuse.NANO, fuse.UNSIZED if unsized else 0,
        )  # fmt: skip
        if not place.name:
            return Entry(attributes, SHORT_S, SHORT_S, row.start)
        return Entry(attributes, LONG_S if place.number < 0 else 0.0, 0.0, row.start)

    def _tabled(self, place: Place, node: int, row: Row) -> Entry:
        entry = self._foreign(place, node, row)
        size = len(self._render(place, node, row))
        self._sizes[place] = size
        return Entry(dataclasses.replace(entry.attributes, size=size), LONG_S, LONG_S, row.start)

    async def _look_up(self, request: Request) -> Entry:
        name = request.name
        if request.node == fuse.ROOT and name == CONTROL:
            return self._control.entry_of(ControlPlace())
        if request.node == fuse.ROOT:
            return await self._look_up_in_root(request, name)
        if system_of(request.node) == SYSVIPC:
            if f"{SYSVIPC}/{name}" not in TABLES:
                raise FileNotFoundError(errno.ENOENT, name)
            number = system_node(f"{SYSVIPC}/{name}")
            return Entry(Attributes(number, FILES, flags=fuse.UNSIZED))
        folder, node, row = self._find(request.node)
        place = folder.child(name)
        if place.is_tabled:
            return self._tabled(place, node, row)
        if place.number >= 0 and not place.below:
            # There are only those that there are.
            above = Place(place.pid, place.name)
            last = place.path.rpartition("/")[2]
            if last not in await self._files.list(node, above, request.uid):
                raise FileNotFoundError(errno.ENOENT, name)
        return self._foreign(place, node, row)

    async def _look_up_in_root(self, request: Request, name: str) -> Entry:
        if name in {*SYSTEM, SYSVIPC}:
            if await _wants_local(request):
                return self._local(name, 0.0)
            if name == SYSVIPC:
                return Entry(Attributes(system_node(name), FOLDER))
            return Entry(Attributes(system_node(name), FILES, flags=fuse.UNSIZED))
        if not is_number(name):
            return self._local(name, LONG_S)
        pid = int(name)
        if self._is_local(pid):
            return self._local(name, 0.0 if pid in self._placeholders.arriving else SHORT_S)
        if pid >= RANGE:
            await self._refresh()
            if found := self._table.find(pid):
                return self._foreign(Place(pid), *found)
        raise FileNotFoundError(errno.ENOENT, name)

    async def _stat(self, request: Request) -> tuple[Attributes, float]:
        if request.node == fuse.ROOT:
            return Attributes(fuse.ROOT, FOLDER), LONG_S
        if name := system_of(request.node):
            mode = FOLDER if name == SYSVIPC else FILES
            return Attributes(request.node, mode, mtime_ns=time.time_ns()), 0.0
        place, node, row = self._find(request.node)
        if not place.name:
            await self._refresh()
            place, node, row = self._find(request.node)
            return self._foreign(place, node, row).attributes, SHORT_S
        if place.is_tabled:
            entry = self._tabled(place, node, row)
            return entry.attributes, entry.attributes_s
        return self._foreign(place, node, row).attributes, 0.0

    # -- content ---------------------------------------------------------------------------------

    async def _read(self, request: Request, *, fresh: bool) -> bytes:
        """Return the content; unless `fresh`, of what was read just before."""
        if name := system_of(request.node):
            return await self._system.read(name, fresh=fresh)
        place, node, row = self._find(request.node)
        if place.is_tabled:
            data = self._render(place, node, row)
            self._sizes[place] = len(data)
            return data
        return await self._files.read(node, place, request.uid, fresh=fresh)

    async def _list(self, request: Request) -> bytes:
        handle, offset, size = request.reading
        if request.node == fuse.ROOT:
            if offset == 0 and handle == CLUSTER:
                await self._refresh()
            return _fill(self._list_root(offset, local=handle == LOCAL), size)
        if system_of(request.node) == SYSVIPC:
            return _fill(_list_tables(offset), size)
        place, node, _ = self._find(request.node)
        if not place.name:
            names = [(name, mode) for name, mode in NAMES.items() if _exists(name)]
        elif place.name == "task" and place.number >= 0:
            names = [
                (name, mode) for name, mode in NAMES.items()
                if name not in {"fd", "fdinfo", "ns", "task", "where", GOTO, CANTMOVE}
            ]  # fmt: skip
        else:
            found = await self._files.list(node, place, request.uid)
            mode = {"task": FOLDER, "fdinfo": FILES}.get(place.name, LINK)
            names = [
                (name, mode) for name in found
                if name.isdigit() or name in NAMESPACES
            ]  # fmt: skip
        names = [(".", FOLDER), ("..", FOLDER), *names]
        parts = (
            fuse.NO_ENTRY + fuse.pack_dirent(name, number, mode)
            for number, (name, mode) in enumerate(names, 1)
            if number > offset
        )
        return _fill(parts, size)

    def _list_root(self, offset: int, *, local: bool) -> Iterator[bytes]:
        """Yield the names behind `offset`, first the system's, then PIDs in their order."""
        names = sorted(os.listdir("/proc"))
        others = [".", "..", *(name for name in names if not name.isdigit())]
        for number, name in enumerate(others[offset:] if offset < PIDS else [], offset + 1):
            if name in {".", "..", *SYSTEM, SYSVIPC}:
                kind = FILES if name in SYSTEM else FOLDER
                yield fuse.NO_ENTRY + fuse.pack_dirent(name, number, kind)
                continue
            with contextlib.suppress(FileNotFoundError):
                entry = self._local(name, LONG_S)
                yield entry.pack() + fuse.pack_dirent(
                    name, number, entry.attributes.mode, entry.attributes.node
                )
        arriving = self._placeholders.arriving
        hidden = set(self._placeholders.hidden).difference(arriving)
        here = {int(name) for name in names if name.isdigit()} - hidden
        for pid in sorted(here if local else here.union(self._table)):
            if PIDS + pid < offset:
                continue
            if pid in here:
                entry = self._local(str(pid), 0.0 if pid in arriving else SHORT_S)
            elif found := self._table.find(pid):
                entry = self._foreign(Place(pid), *found)
            else:
                continue
            number = entry.attributes.node
            yield entry.pack() + fuse.pack_dirent(str(pid), PIDS + pid + 1, FOLDER, number)


def _list_tables(offset: int) -> Iterator[bytes]:
    names = [(".", FOLDER), ("..", FOLDER)]
    names += [(name.partition("/")[2], FILES) for name in TABLES]
    for number, (name, mode) in enumerate(names, 1):
        if number > offset:
            yield fuse.NO_ENTRY + fuse.pack_dirent(name, number, mode)


def _exists(name: str) -> bool:
    return Path("/proc/self", name).exists() or name in {"cwd", "exe", "root", GOTO, CANTMOVE}


def _fill(parts: Iterator[bytes], size: int) -> bytes:
    """Return as many whole `parts` as `size` bytes hold."""
    data = bytearray()
    for part in parts:
        if len(data) + len(part) > size:
            break
        data += part
    return bytes(data)
