"""Processes of the userland that outlive this daemon, each run under a key.

/sbin/ssi-job is the parent of each. A daemon that is started again finds it by its arguments, or
else what it has noted at its end, and goes on waiting as if nothing had been.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from ssi.node.processes import start_process
from ssi.node.waiting import wait_until

logger = logging.getLogger(__name__)

FOLDER = Path("/run/ssi/jobs")
PARENT = "/sbin/ssi-job"

STARTED_S = 5.0
"""By then a parent has noted whose it is."""

TERM_S = 5.0
"""From SIGTERM to SIGKILL, as with sysvinit."""

AGAIN_S = 1.0

LOST = 255
"""The status of a job whose parent was killed."""


def _find_parents() -> dict[str, int]:
    """Return the PID of each job's parent that lives, by the job's key."""
    found = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
        if len(words) > 3 and words[0] == b"/bin/sh" and words[1] == os.fsencode(PARENT):
            found[os.fsdecode(words[2])] = int(entry)
    return found


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):  # PID 1's, if a former daemon was its parent
        os.waitpid(pid, os.WNOHANG)


async def _wait_end(pid: int) -> None:
    """Wait until the process has ended, whoever's child it is."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
        _reap(pid)


class Jobs:
    """The jobs of this node. One task at a time may run or stop one key."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self._parents = _find_parents()

    def find(self) -> set[str]:
        """Return the keys of the jobs that run, or have ended and are not forgotten."""
        ended = {path.name.removesuffix(".status") for path in self._folder.glob("*.status")}
        return ended.union(self._parents)

    async def run(self, key: str, argv: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run `argv` to its end, or the job of that key that runs or has ended; return its status.

        Cancelled, it leaves the job as it is.
        """
        if (status := self._read_status(key)) is not None:
            return status
        if key not in self._parents:
            command = ["/bin/sh", PARENT, key, *argv]
            self._parents[key] = await self._start(command, environment)
        await self._wait(key)
        status = self._read_status(key)
        if status is None:
            # Its parent was killed; the job itself may be alive, and must not run twice.
            await self._kill_group(key)
            return LOST
        return status

    async def _start(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        while True:
            try:
                return start_process(command, environment)
            except OSError as error:  # no memory, too many processes: that passes
                logger.warning("job %s: %s", command[2], error)
                await asyncio.sleep(AGAIN_S)

    async def _wait(self, key: str) -> None:
        await _wait_end(self._parents[key])
        self._parents.pop(key, None)

    async def stop(self, key: str) -> None:
        """End the job of that key if it runs: SIGTERM, then SIGKILL; return when it is gone."""
        if key not in self._parents:
            return
        group = self._folder / f"{key}.group"
        await wait_until(lambda: self._read_number(group) is not None, within_s=STARTED_S)
        self._signal(key, signal.SIGTERM)
        self._signal(key, signal.SIGCONT)
        try:
            async with asyncio.timeout(TERM_S):
                await self._wait(key)
        except TimeoutError:
            logger.warning("job %s does not end: killed", key)
            self._signal(key, signal.SIGKILL)
            await self._wait(key)

    def forget(self, key: str) -> None:
        """Remove what is noted of a job that has ended: the key may be used again."""
        for name in (f"{key}.group", f"{key}.status"):
            (self._folder / name).unlink(missing_ok=True)

    async def _kill_group(self, key: str) -> None:
        self._signal(key, signal.SIGKILL)
        group = self._read_number(self._folder / f"{key}.group")
        if group is not None:
            await _wait_end(group)

    def _signal(self, key: str, number: int) -> None:
        group = self._read_number(self._folder / f"{key}.group")
        if group is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, number)

    def _read_status(self, key: str) -> int | None:
        return self._read_number(self._folder / f"{key}.status")

    @staticmethod
    def _read_number(path: Path) -> int | None:
        try:
            return int(path.read_text())
        except (FileNotFoundError, ValueError):
            return None
