"""What init runs: the launcher's jobs, which the next daemon finds, on the node's console."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
from collections.abc import Iterator, Mapping, Sequence

from ssi.node.launcher import Launcher, Program
from ssi.node.root import SYSROOT

logger = logging.getLogger(__name__)

TERM_S = 5.0
"""From SIGTERM to SIGKILL, as with sysvinit."""

AGAIN_S = 1.0
CONSOLE = "/dev/console"


@contextlib.contextmanager
def _open_standard() -> Iterator[list[int]]:
    """Descriptors 0 to 2 of a job: nothing to read, and the console."""
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    try:
        console = os.open(CONSOLE, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        logger.warning("%s: %s", CONSOLE, error)
        console = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    try:
        yield [null, console, console]
    finally:
        os.close(null)
        os.close(console)


def _sync_root() -> None:
    fd = os.open(SYSROOT, os.O_RDONLY | os.O_CLOEXEC)
    try:
        ctypes.CDLL(None).syncfs(fd)
    finally:
        os.close(fd)


class Jobs:
    """The jobs of this node. One task at a time may run or stop one key."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    async def wait_known(self) -> None:
        """Wait until it is known what runs."""
        await self._launcher.wait_connected()

    def find(self) -> set[str]:
        """Return the keys of the jobs that run, or have ended and are not forgotten."""
        return self._launcher.keys

    async def run(self, key: str, argv: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run `argv` to its end, or the job of that key that runs or has ended; return its status.

        Cancelled, it leaves the job as it is.
        """
        pid = await self._start(key, Program(argv, environment))
        status = os.waitstatus_to_exitcode(await self._launcher.wait(key))
        if key not in self._launcher.keys:
            # The launcher was killed, and the job itself may be alive; it must not run twice.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        # What it has written outlives this node before anybody hears that it has run.
        await asyncio.to_thread(_sync_root)
        return status if status >= 0 else 128 - status

    async def _start(self, key: str, program: Program) -> int:
        while True:
            try:
                with _open_standard() as standard:
                    return await self._launcher.start(key, program, standard)
            except OSError as error:  # no memory, too many processes: that passes
                logger.warning("job %s: %s", key, error)
                await asyncio.sleep(AGAIN_S)

    async def stop(self, key: str) -> None:
        """End the job of that key if it runs: SIGTERM, then SIGKILL; return when it is gone."""
        self._signal(key, signal.SIGTERM)
        self._signal(key, signal.SIGCONT)
        try:
            async with asyncio.timeout(TERM_S):
                await self._launcher.wait(key)
        except TimeoutError:
            logger.warning("job %s does not end: killed", key)
            self._signal(key, signal.SIGKILL)
            await self._launcher.wait(key)

    def forget(self, key: str) -> None:
        """Forget a job that has ended: the key may be used again."""
        self._launcher.forget(key)

    def _signal(self, key: str, number: int) -> None:
        # Each is a session and a group of its own.
        if pid := self._launcher.pid_of(key):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)
