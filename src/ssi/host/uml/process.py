"""One UML kernel and all processes that belong to it: a process group of their own."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import IO

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Make orphans below this process its children, so that it can wait for them."""
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def group_members(group: int) -> list[int]:
    """Return the PIDs of the living processes in process group `group`."""
    pids = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        state, group_of_it = fields[0], int(fields[2])
        if group_of_it == group and state not in "ZX":
            pids.append(int(entry))
    return pids


async def kill_group(group: int) -> None:
    """Kill process group `group`, and return when no process of it lives.

    UML runs a node's processes as host processes: killing the first alone leaves the others,
    which may still have writes to the shared disk under way.
    """
    while group_members(group):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        await asyncio.sleep(0.005)  # a killed process is gone when it is gone: nothing tells us
    reap_group(group)


def reap_group(group: int) -> None:
    """Collect dead children of ours in process group `group`."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass


class UmlProcess:
    """A running UML kernel."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(
        cls, argv: Sequence[str], *, pass_fds: Sequence[int], log: IO[bytes]
    ) -> UmlProcess:
        """Start `argv` as the leader of a new process group; its own words go to `log`."""
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
            pass_fds=pass_fds, start_new_session=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
        )  # fmt: skip
        return cls(process)

    @property
    def group(self) -> int:
        """The process group, which is also the PID of the kernel's first process."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait until the kernel has ended and nothing of it is left; return its status."""
        status = await self._process.wait()
        await kill_group(self.group)
        return status

    async def kill(self) -> None:
        """Kill it; return when nothing of it is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.group, signal.SIGKILL)
        await self.wait()
