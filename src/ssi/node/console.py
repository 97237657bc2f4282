"""The node's console: it has the size of the window in which the host shows it."""

from __future__ import annotations

import os
import termios
from pathlib import Path

from ssi.common.wire import Message, get_int
from ssi.node.hostline import HostLine


class Console:
    """The terminal that is called /dev/NAME."""

    def __init__(self, name: str, host: HostLine) -> None:
        self._path = Path("/dev") / name
        host.hear("size", self._hear_size)

    def _hear_size(self, message: Message) -> None:
        rows, columns = (get_int(message, key, 1, 10_000) for key in ("rows", "columns"))
        fd = os.open(self._path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            # The kernel sends SIGWINCH to who is in the foreground there.
            termios.tcsetwinsize(fd, (rows, columns))
        finally:
            os.close(fd)
