"""The login prompt on the node's console."""

from __future__ import annotations

import asyncio
import logging
import os
import termios
from pathlib import Path

from ssi.common.wire import Message, get_int
from ssi.node.hostline import HostLine
from ssi.node.processes import list_terminal
from ssi.node.root import userland_argv

logger = logging.getLogger(__name__)

AGAIN_S = 1.0


class Login:
    """Keeps one getty on the console."""

    def __init__(self, console: str, host: HostLine) -> None:
        self._console = console
        host.hear("size", self._hear_size)

    def _hear_size(self, message: Message) -> None:
        rows, columns = (get_int(message, key, 1, 10_000) for key in ("rows", "columns"))
        fd = os.open(Path("/dev") / self._console, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            # The kernel sends SIGWINCH to who is in the foreground there.
            termios.tcsetwinsize(fd, (rows, columns))
        finally:
            os.close(fd)

    def _device(self) -> int:
        return (Path("/dev") / self._console).stat().st_rdev

    async def run(self) -> None:
        """Start a getty, and another when a login ends, until cancelled."""
        argv = ["/sbin/agetty", "--noclear", "-L", self._console, "115200", "xterm-256color"]
        loop = asyncio.get_running_loop()
        # A login that outlived the daemon before this one goes on, and has no parent to tell us.
        while list_terminal(self._device()):  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(AGAIN_S)
        while True:
            started = loop.time()
            process = await asyncio.create_subprocess_exec(
                *userland_argv(argv), stdin=asyncio.subprocess.DEVNULL, start_new_session=True
            )
            await process.wait()
            # A getty that fails at once must not eat the processor.
            await asyncio.sleep(max(0.0, AGAIN_S - (loop.time() - started)))
