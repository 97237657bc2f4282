"""The processes that run on this node, as they are told to the others: what has changed since."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.wire import Message
from ssi.node.ics.answering import Call
from ssi.node.pids import RANGE
from ssi.node.proc.rows import NO_MEMORY, Memory, Row, mask_stat

logger = logging.getLogger(__name__)

FRESH_S = 0.1
"""Who asks sooner than that hears the same."""

MAX_FILE = 16384
MAX_MEMORY = 16384
"""Bytes of a command line or an environment that are told; more than that few people read."""

PART = 48 * 1024
"""Bytes of rows in a part, about."""

QUIET_S = 10.0
"""Files of processes that nobody has asked about for so long are closed."""

SLOW_S = 1.0
REMEMBERED = 10000


class Placeholders(Protocol):
    """Processes of this node that are not what they look like."""

    @property
    def hidden(self) -> Collection[int]:
        """Those that only hold a PID: their bodies run, and are told of, elsewhere."""

    @property
    def arriving(self) -> Collection[int]:
        """Those that are being restored here: for who looks they are here already, but not told."""

    @property
    def terminals(self) -> Mapping[int, int]:
        """The device number of the terminal of those bodies whose terminal is elsewhere."""


class _Watched:
    """A process whose files stay open while it is asked about: to read one again is one call."""

    def __init__(self, pid: int) -> None:
        """Raises OSError when it is gone."""
        self.row: Row | None = None
        self.seen = ("", "")
        self._pid = pid
        self._files: list[int] = []
        self._open()

    def _open(self) -> None:
        try:
            for name in ("stat", "status"):
                path = f"/proc/{self._pid}/{name}"
                self._files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            self.close()
            raise

    def read(self) -> tuple[str, str]:
        """Return stat and status; raises OSError when it is gone."""
        if not self._files:
            self._open()
        stat, status = (os.pread(fd, MAX_FILE, 0) for fd in self._files)
        if not stat or not status:
            raise ProcessLookupError
        return stat.decode("latin-1"), status.decode("latin-1")

    def close(self) -> None:
        """Keep no file open; the next look opens them again."""
        while self._files:
            os.close(self._files.pop())


def _read_some(path: Path) -> bytes:
    """Return the first bytes of a file, none of a process without memory."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_MEMORY)
    except ProcessLookupError:
        return b""


def _read_memories(pids: Collection[int]) -> Mapping[int, Memory]:
    found = {}
    for pid in pids:
        folder = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError):
            owner = (folder / "environ").stat()
            cmdline, environ = (_read_some(folder / name) for name in ("cmdline", "environ"))
            found[pid] = Memory(cmdline, environ, owner.st_uid, owner.st_gid)
    return found


class Own:
    """Answers the others' questions about this node's processes."""

    def __init__(self, placeholders: Placeholders) -> None:
        self._placeholders = placeholders
        self._life = secrets.token_hex(8)
        """Numbers of changes are of this daemon only."""
        self._number = 0
        self._watched: dict[int, _Watched] = {}
        self._changed: dict[int, int] = {}
        self._gone: dict[int, int] = {}
        """The number of the change in which a process was gone."""
        self._forgotten = 0
        """The last change that is not in `_gone` any more."""
        self._looked = 0.0
        self._lock = asyncio.Lock()
        self._reading: asyncio.Future[Mapping[int, Memory]] | None = None
        self._resting: asyncio.TimerHandle | None = None

    async def answer(self, call: Call) -> Message:
        """Tell what has changed since what the caller knows, or all."""
        life = wire.get_text(call.body, "life")
        since = wire.get_int(call.body, "since", 0, 2**53)
        await self.look()
        whole = life != self._life or since < self._forgotten or since > self._number
        part: list[Message] = []
        size = 0
        for pid, watched in list(self._watched.items()):
            if watched.row and (whole or self._changed[pid] > since):
                row = watched.row
                part.append(row.dump())
                size += len(row.stat) + len(row.status)
                size += 2 * (len(row.memory.cmdline) + len(row.memory.environ))
            if size > PART:
                await call.send({"rows": part})
                part, size = [], 0
        return {
            "life": self._life, "number": self._number, "whole": whole, "rows": part,
            "gone": [pid for pid, number in self._gone.items() if number > since and not whole],
            "booted": time.time() - time.clock_gettime(time.CLOCK_BOOTTIME),
        }  # fmt: skip

    def _rest_later(self) -> None:
        if self._resting:
            self._resting.cancel()
        self._resting = asyncio.get_running_loop().call_later(QUIET_S, self._rest)

    def _rest(self) -> None:
        for watched in self._watched.values():
            watched.close()

    def close(self) -> None:
        """Look no more."""
        if self._resting:
            self._resting.cancel()
        for pid in list(self._watched):
            self._drop(pid)

    async def look(self) -> None:
        """See what has changed."""
        async with self._lock:
            if time.monotonic() - self._looked < FRESH_S:
                return
            self._number += 1
            hidden = {*self._placeholders.hidden, *self._placeholders.arriving}
            pids = {int(name) for name in os.listdir("/proc") if name.isdigit()}
            pids = {pid for pid in pids if pid >= RANGE and pid not in hidden}
            for pid in self._watched.keys() - pids:
                self._drop(pid)
            await self._make_rows(self._find_changed(pids))
            self._rest_later()
            self._looked = time.monotonic()

    def _find_changed(self, pids: Collection[int]) -> Mapping[int, tuple[str, str]]:
        changed = {}
        for pid in pids:
            try:
                watched = self._watched.get(pid)
                try:
                    texts = (watched or self._watch(pid)).read()
                except OSError:
                    if watched is None:
                        raise
                    self._drop(pid)  # the number may be another process's now
                    texts = self._watch(pid).read()
            except OSError:
                self._drop(pid)
                continue
            if texts != self._watched[pid].seen:
                changed[pid] = texts
        return changed

    def _watch(self, pid: int) -> _Watched:
        self._watched[pid] = watched = _Watched(pid)
        return watched

    def _drop(self, pid: int) -> None:
        if watched := self._watched.pop(pid, None):
            watched.close()
            self._changed.pop(pid, None)
            self._gone[pid] = self._number
            while len(self._gone) > REMEMBERED:
                self._forgotten = max(self._forgotten, self._gone.pop(next(iter(self._gone))))

    async def _make_rows(self, changed: Mapping[int, tuple[str, str]]) -> None:
        memories = await self._read_memories(changed) if changed else {}
        for pid, texts in changed.items():
            watched = self._watched[pid]
            before = watched.row.memory if watched.row else NO_MEMORY
            terminal = self._placeholders.terminals.get(pid)
            try:
                watched.row = Row(
                    pid, mask_stat(texts[0], terminal), texts[1], memories.get(pid, before)
                )
            except ProtocolError as error:
                logger.warning("process %d: %s", pid, error)
                continue
            watched.seen = texts
            self._changed[pid] = self._number
            self._gone.pop(pid, None)

    async def _read_memories(self, pids: Collection[int]) -> Mapping[int, Memory]:
        """Return what can be read within a second: one may be held for as long as the root is."""
        if self._reading and not self._reading.done():
            return {}
        loop = asyncio.get_running_loop()
        self._reading = loop.run_in_executor(None, _read_memories, list(pids))
        done, _ = await asyncio.wait({self._reading}, timeout=SLOW_S)
        if not done:
            logger.warning("the memory of a process is held")
            return {}
        return self._reading.result()
