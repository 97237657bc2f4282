"""The CRIU that holds a process, which may be killed as anything else may."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import select
import signal
from collections.abc import Awaitable, Callable, Collection

from ssi.node.migration.criu import CannotMove
from ssi.node.processes import read_stat, start_of
from ssi.node.smallfiles import read_text

STILL_S = 120.0
"""What has used no processor for so long makes no progress. The root may be blocked for a while, as
others recover it."""

GHOST = "/usr/bin/onnode"
_EXITING = 0x4
_KILLED = 1 << (signal.SIGKILL - 1)
_FLAGS, _UTIME, _STIME = 6, 11, 12
"""Places in /proc/PID/stat, behind the name."""


class Fate(enum.Enum):
    """What has become of a process that CRIU has held."""

    RUNS = "runs"
    GHOST = "ghost"
    GONE = "gone"


class Holder:
    """A process of which somebody has to know when it ends, whoever's child it is."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.begun = 0
        self.ended = asyncio.Event()
        self._fd = -1
        try:
            self._fd = os.pidfd_open(pid)
            self.begun = start_of(pid)
        except (OSError, ValueError, IndexError):
            self._end()
        else:
            asyncio.get_running_loop().add_reader(self._fd, self._end)

    @classmethod
    def find(cls, pid: int, begun: int) -> Holder:
        """Return the one that a daemon before this one had; another of its PID it is not."""
        one = cls(pid)
        if one.begun != begun:
            one._end()
        return one

    def _end(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
        self._fd = -1
        self.ended.set()

    def check(self) -> None:
        """Raise HolderKilled if it has ended, be it this moment."""
        if self._fd < 0 or select.select([self._fd], [], [], 0)[0]:
            raise HolderKilled

    def kill(self) -> None:
        """Have it end."""
        if self._fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    async def wait_end(self) -> None:
        """Wait until it has ended; it is killed if it makes no progress."""
        if not await wait_first([self.ended.wait()], lambda: spent(self.pid)):
            self.kill()
            await self.ended.wait()


async def wait_first(
    events: Collection[Awaitable[object]], progress: Callable[[], object] | None = None
) -> bool:
    """Wait for one of several events; False if what is given as progress does not change."""
    tasks = [asyncio.ensure_future(event) for event in events]
    before: object = None
    try:
        while True:
            done, _ = await asyncio.wait(
                tasks, timeout=STILL_S, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return True
            now = progress() if progress else object()
            if now == before:
                return False
            before = now
    finally:
        for task in tasks:
            task.cancel()
            # Whoever wants to know how one has ended looks himself.
            task.add_done_callback(lambda task: task.cancelled() or task.exception())


def spent(*pids: int) -> int:
    """Return how much of the processor processes have used, in ticks."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            fields = read_stat(pid)
            total += int(fields[_UTIME]) + int(fields[_STIME])
    return total


def is_killed(status: str) -> bool:
    """Tell by the text of /proc/PID/status whether a process will end as soon as it can."""
    pending = [
        line.split()[1] for line in status.splitlines() if line.startswith(("SigPnd", "ShdP"))
    ]
    return any(int(signals, 16) & _KILLED for signals in pending)


def find_fate(pid: int, begun: int) -> Fate:
    """Tell what has become of the process of this PID that began then, once nobody holds it."""
    try:
        fields = read_stat(pid)
        status = read_text(f"/proc/{pid}/status")
        program = os.readlink(f"/proc/{pid}/exe")
        if start_of(pid) != begun:
            return Fate.GONE
    except (OSError, ValueError, IndexError):
        return Fate.GONE
    if fields[0] in "ZX" or int(fields[_FLAGS]) & _EXITING:
        return Fate.GONE
    if is_killed(status):
        return Fate.GONE
    # Not what is in its memory: who looks there may have to wait.
    return Fate.GHOST if program.endswith(GHOST) else Fate.RUNS


class HolderKilled(CannotMove):
    """CRIU has ended, and nobody has had it do so: the process goes on."""

    def __init__(self) -> None:
        super().__init__("CRIU was killed")
