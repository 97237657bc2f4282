"""What becomes of the descriptors of a process that leaves.

Some stay, with what the process leaves: its ghost at home, a remnant on another node. It uses them
from where it comes to.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
import re
import socket
from collections.abc import Collection, Mapping
from pathlib import Path

from ssi.common.wire import Message
from ssi.node.migration import rewrite, sockets
from ssi.node.migration.criu import CannotMove
from ssi.node.migration.rewrite import FileType
from ssi.node.process.bodies import FD_MASK, Body
from ssi.node.process.descriptors import find_sharers, is_memory, is_same, list_open
from ssi.node.process.device import PATH, Device, Kind, get_descriptor
from ssi.node.process.jobcontrol import list_people
from ssi.node.process.places import Places
from ssi.node.relay.relays import Relays
from ssi.node.relay.saved import Saved, pass_descriptors, path_of
from ssi.node.smallfiles import read_text

STAYS = frozenset({FileType.TTY, FileType.FIFO, FileType.EXTERNAL})
"""Files of these types stay where the process was started, with the ghost; and so does a pipe which
others have open as well, a file whose offset it shares with others, or a socket whose other end is
another's."""


@dataclasses.dataclass(slots=True)
class Sorted:
    """The descriptors of a process that leaves."""

    kept: list[int] = dataclasses.field(default_factory=list)
    """What it leaves with what stays here."""
    halves: list[int] = dataclasses.field(default_factory=list)
    """Those of them that are sockets."""
    files: list[Message] = dataclasses.field(default_factory=list)
    """What the plugin is to open where it comes to, as arrival.File has it."""
    owners: dict[str, Body] = dataclasses.field(default_factory=dict)
    """What it has from remnants on other nodes, by their ids."""


class Files:
    """Those of processes of this node."""

    def __init__(self, places: Places, device: Device, relays: Relays) -> None:
        self._places = places
        self._device = device
        self._relays = relays

    async def sort(self, pid: int, body: Body | None, folder: Path, keeper: str) -> Sorted:
        """Sort those of the process whose images are in `folder`, and have these say so.

        What stays here stays with `keeper`. Raises CannotMove.
        """
        entries: set[int] = set()
        found = Sorted()
        files = rewrite.list_files(folder)
        shared = await asyncio.to_thread(_find_shared, pid, files)
        halves = await asyncio.to_thread(_find_halves, pid, files)
        for fd, (entry, kind) in files.items():
            if entry in entries or not (kind in STAYS or fd in shared or fd in halves):
                continue
            entries.add(entry)
            file: Message = {
                "entry": entry, "fd": fd, "flags": _flags_of(pid, fd), "process": 0,
                "node": self._places.node, "ghost": keeper, "relay": fd in halves,
            }  # fmt: skip
            if kind == FileType.EXTERNAL:
                file.update(await self._describe_handle(pid, body, fd, found))
            elif fd in halves:
                file.update(await self._describe_half(pid, body, fd, found, path_of(folder, entry)))
            if file["ghost"] == keeper and not file["process"]:
                found.kept.append(fd)
                found.halves += [fd] if fd in halves else []
            found.files.append(file)
        rewrite.make_external(folder, entries)
        return found

    async def settle(self, move: str, *, left: bool) -> None:
        """Have go on here what was stopped for a move, unless the process has left."""
        await self._relays.settle(move, left=left)

    async def _describe_handle(
        self, pid: int, body: Body | None, fd: int, found: Sorted
    ) -> Message:
        """Return what a descriptor of a device leads to."""
        try:
            handle = await self._device.find_handle(pid, fd)
        except OSError as error:
            # A terminal, say.
            if error.errno == errno.ENXIO:
                return {}
            raise CannotMove(f"its descriptor {fd} is of a device of this node") from error
        if Kind.of(handle) == Kind.PROCESS:
            return {"process": handle}
        return self._find_owner(handle, body, found)

    async def _describe_half(
        self, pid: int, body: Body | None, fd: int, found: Sorted, path: Path
    ) -> Message:
        """Return where the far end of a socket is, and write what goes along with it."""
        with _open_socket(pid, fd) as near:
            inode = os.fstat(near.fileno()).st_ino
            halves = sockets.ask_unix(inode).halves
            relay = self._relays.find(inode)
            owner = self._find_owner(relay.handle, body, found) if relay and relay.handle else {}
            try:
                if relay and owner:
                    await self._relays.freeze(relay, path, near, halves)
                else:
                    Saved.of(near, halves).write(path)
            except OSError as error:
                raise CannotMove(f"its descriptor {fd}: {error.strerror}") from error
        return owner

    def _find_owner(self, handle: int, body: Body | None, found: Sorted) -> Message:
        """Return who has what a handle is of; nothing if that stays here."""
        try:
            owner, theirs = self._places.bodies.of(handle)
        except OSError:
            # It leads nowhere, there as here.
            return {"fd": handle & FD_MASK, "node": 0, "ghost": ""}
        if owner.link:
            found.owners[owner.id] = owner
        elif owner is not body:
            # Of a parent's, say, of whom it has been born here.
            return {}
        return {"fd": theirs, "node": owner.home, "ghost": owner.id}

    async def list_left(self, pid: int, owner: Body) -> list[int]:
        """Return what others here than process `pid` have open of an owner's descriptors."""
        found = set()
        others = set(list_people()) - self._places.hidden - {pid}
        for other, fd in await asyncio.to_thread(_list_remote, others):
            with contextlib.suppress(OSError):
                handle = await self._device.find_handle(other, fd)
                if Kind.of(handle) == Kind.FILE:
                    body, theirs = self._places.bodies.of(handle)
                    found |= {theirs} if body is owner else set()
        return sorted(found | self._relays.list_used(owner))


def refuse_descriptors(pid: int, halves: Collection[int]) -> None:
    """Have who sends a descriptor to those sockets of what stays hear that it does not come."""
    for fd in halves:
        with contextlib.suppress(OSError), _open_socket(pid, fd) as far:
            pass_descriptors(far.fileno(), passes=False)


def _open_socket(pid: int, fd: int) -> socket.socket:
    pidfd = os.pidfd_open(pid)
    try:
        return socket.socket(fileno=get_descriptor(pidfd, fd))
    finally:
        os.close(pidfd)


def _list_remote(pids: Collection[int]) -> list[tuple[int, int]]:
    """Return the descriptors of the remote device that processes have."""
    return [(pid, fd) for pid in pids for fd, name in list_open(pid) if name == PATH]


def _find_shared(pid: int, files: Mapping[int, tuple[int, FileType]]) -> set[int]:
    """Return of which pipes others have an end, and of which files they share the offset."""
    kinds = {
        fd: kind for fd, (_, kind) in files.items()
        if kind == FileType.PIPE or (kind == FileType.REGULAR and not is_memory(pid, fd))
    }  # fmt: skip
    return {
        fd for fd, others in find_sharers(pid, kinds).items()
        if (kinds[fd] == FileType.PIPE and others)
        or any(is_same(pid, fd, *other) for other in others)
    }  # fmt: skip


def _find_halves(pid: int, files: Mapping[int, tuple[int, FileType]]) -> set[int]:
    """Return which are sockets whose other end is another's."""
    inodes = {
        fd: Path(f"/proc/{pid}/fd/{fd}").stat().st_ino
        for fd, (_, kind) in files.items() if kind == FileType.UNIX
    }  # fmt: skip
    return {
        fd for fd, inode in inodes.items()
        if sockets.ask_unix(inode).is_half(inodes.values())
    }  # fmt: skip


def _flags_of(pid: int, fd: int) -> int:
    info = read_text(f"/proc/{pid}/fdinfo/{fd}")
    return int(re.findall(r"flags:\s*([0-7]+)", info)[0], 8)
