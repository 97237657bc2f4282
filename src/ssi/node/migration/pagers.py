"""Pagers: what brings the memory of processes that go on here before all of it has come.

native/criu/pager.c is one. It outlives this daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import mmap
import os
import signal
import socket
import struct
from pathlib import Path

from ssi.common import wire
from ssi.common.wire import Message
from ssi.node.cluster import Cluster
from ssi.node.migration.criu import ENTER, FOLLOWING, Way
from ssi.node.migration.holder import Holder, wait_first
from ssi.node.migration.images import Fields, Image
from ssi.node.migration.kept import Kept
from ssi.node.process.places import Places
from ssi.node.processes import read_status, reap, start_process
from ssi.node.root import USERLAND
from ssi.node.smallfiles import read_bytes, read_text, write_bytes
from ssi.node.state.state import State
from ssi.node.tasks import Tasks

logger = logging.getLogger(__name__)

PROGRAM = "/usr/lib/ssi/pager"
FOLDER = Path("/run/ssi/pagers")
SOCKET = "lazy-pages.socket"
"""Beside the images CRIU looks for it there."""
MISSING = "missing"

LEAST = 16 * 1024 * 1024
"""Of less memory all is sent at once: that takes no longer than what is to be done for a pager."""

_ADDRESS, _PAGES, _FLAGS = 1, 2, 4
_LAZY = 2
_HEAD = 1
"""Entries of a pagemap before its pages."""
_PAIR = struct.Struct("=QQ")
_MISSES = " um"
"""The kernel's word in smaps for a mapping of which pages may be missing."""


def choose_way(pid: int, *, whole: bool) -> Way:
    """Return how the memory of a process goes; `whole`: not later. Raises ProcessLookupError."""
    fields = read_status(pid)
    if "RssAnon" not in fields:
        raise ProcessLookupError(pid)  # it has just ended
    own, shared, swapped = (
        int(fields[name][0]) * 1024 for name in ("RssAnon", "RssShmem", "VmSwap")
    )
    if own < LEAST:
        return Way.BY_CRIU
    # What is shared is sent at once; what is swapped out would all be in memory at the same time.
    return Way.AT_ONCE if whole or shared + swapped >= LEAST else Way.LATER


def count_own(pid: int) -> int:
    """Return how many pages in memory are a process's alone; raises ProcessLookupError."""
    return int(read_status(pid).get("RssAnon", ["0"])[0]) * 1024 // mmap.PAGESIZE


def find_missing(image: Path) -> list[tuple[int, int]]:
    """Return where pages are that follow later: addresses, and how many from there on."""
    return [
        (entry.number(_ADDRESS), entry.number(_PAGES))
        for entry in Image(image).entries[_HEAD:] if entry.number(_FLAGS) & _LAZY
    ]  # fmt: skip


def add_following(folder: Path, pid: int) -> None:
    """Have the image of a process's pages tell of those that CRIU has not seen."""
    pairs = sorted(_PAIR.iter_unpack(read_bytes(folder / FOLLOWING)))
    image = Image(folder / f"pagemap-{pid}.img")
    known = 0
    for address, count in pairs:
        # Where mappings are small it looks at some twice.
        start, end = max(address, known), address + count * mmap.PAGESIZE
        known = max(known, end)
        if start < end:
            entry = Fields()
            values = start, (end - start) // mmap.PAGESIZE, _LAZY
            for field, value in zip((_ADDRESS, _PAGES, _FLAGS), values, strict=True):
                entry.set(field, value)
            image.entries.append(entry)
    image.entries[_HEAD:] = sorted(image.entries[_HEAD:], key=lambda one: one.number(_ADDRESS))
    image.save()


def _count_pages(pid: int) -> int:
    """Return how much of a process's memory is there, 0 if it is not."""
    with contextlib.suppress(OSError):
        return int(read_text(f"/proc/{pid}/statm").split()[1])
    return 0


def _misses(pid: int) -> bool:
    """Tell whether pages of a process may be missing."""
    with contextlib.suppress(OSError), Path(f"/proc/{pid}/smaps").open() as lines:
        return any(line.startswith("VmFlags") and _MISSES in line for line in lines)
    return False


@dataclasses.dataclass(frozen=True, slots=True)
class Pager:
    """One of them, and the node from which it fetches."""

    holder: Holder
    source: int
    pid: int
    pages: int
    """How many its process has had there."""

    def dump(self) -> Message:
        """Return what the next daemon must know."""
        return {
            "pager": [self.holder.pid, self.holder.begun], "source": self.source,
            "pid": self.pid, "pages": self.pages,
        }  # fmt: skip

    def signal(self, number: int) -> None:
        """Send a signal to both processes of it."""
        if not self.holder.ended.is_set():
            os.killpg(self.holder.pid, number)


class Pagers:
    """All of this node."""

    def __init__(self, cluster: Cluster, places: Places) -> None:
        self.kept = Kept(places)
        self._all: dict[str, Pager] = {}
        """By the moves of their processes."""
        self._tasks = Tasks()
        cluster.on_change.append(self._look_for_losses)

    def start(self, folder: Path, pid: int, source: int, connection: socket.socket) -> None:
        """Start one for what is restored from a folder, whose images came by a connection."""
        move = folder.name
        missing = folder / MISSING
        ranges = find_missing(folder / f"pagemap-{pid}.img")
        write_bytes(missing, b"".join(_PAIR.pack(*each) for each in ranges))
        with socket.socket(socket.AF_UNIX) as listener, missing.open("rb") as file:
            listener.bind(os.fspath(folder / SOCKET))
            listener.listen()
            fds = [one.fileno() for one in (listener, connection, file)]
            argv = [ENTER, os.fspath(USERLAND), PROGRAM, *map(str, fds)]
            holder = Holder(start_process(argv, fds=fds))
        pager = Pager(holder, source, pid, sum(count for _, count in ranges))
        (FOLDER / move).write_bytes(wire.encode(pager.dump()))
        logger.info("move %s: %d pages of process %d follow", move, pager.pages, pid)
        self._watch(move, pager)

    def _watch(self, move: str, pager: Pager) -> None:
        self._all[move] = pager
        self._tasks.spawn(self._await_end(move, pager.holder))

    async def _await_end(self, move: str, holder: Holder) -> None:
        await holder.ended.wait()
        reap(holder.pid)
        (FOLDER / move).unlink(missing_ok=True)
        del self._all[move]

    def _look_for_losses(self, _: State, now: State) -> None:
        for pager in self._all.values():
            if pager.source not in now.view.alive:
                pager.signal(signal.SIGUSR1)

    def take_over(self) -> None:
        """Find all that daemons before this one have started."""
        self.kept.take_over()
        FOLDER.mkdir(mode=0o700, exist_ok=True)
        for path in FOLDER.iterdir():
            try:
                saved = json.loads(read_bytes(path))
            except ValueError:
                path.unlink()
                continue
            holder = Holder.find(*saved["pager"])
            self._watch(path.name, Pager(holder, saved["source"], saved["pid"], saved["pages"]))

    def count_missing(self) -> int:
        """Return how many pages are still to come, as far as can be known."""
        return sum(max(pager.pages - _count_pages(pager.pid), 0) for pager in self._all.values())

    def kill(self, move: str) -> None:
        """End that of a process that does not go on here, if there is one."""
        if pager := self._all.get(move):
            pager.signal(signal.SIGKILL)

    async def wait(self, pid: int) -> None:
        """Wait until all memory of a process is here."""
        while self._all:
            if not await asyncio.to_thread(_misses, pid):
                return
            await wait_first([pager.holder.ended.wait() for pager in self._all.values()])
