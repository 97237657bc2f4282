"""The daemon's log: a file in RAM, and whatever else wants the lines of this node."""

from __future__ import annotations

import asyncio
import collections
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from ssi.common.logline import LineFormatter, LogLine
from ssi.common.rotating import append

LOG = Path("/run/ssi/ssid.log")
LIMIT = 1 << 20
"""Bytes; twice that are kept in RAM."""

EARLY = 500
"""Lines kept until there is somebody to hand them to."""

Outlet = Callable[[LogLine], None]
"""Takes a line at once or never: it must neither wait nor log."""


class NodeLog(logging.Handler):
    """Writes records to a file and hands them, like other programs' lines, to the outlets."""

    def __init__(self, node: int, path: Path = LOG) -> None:
        super().__init__()
        self.format_line = LineFormatter(node, "ssid")
        self._path = path
        self._outlets: list[Outlet] = []
        self._early: collections.deque[LogLine] = collections.deque(maxlen=EARLY)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Write `record`, and hand it on."""
        try:
            lines = self.format_line.lines(record)
            append(self._path, "".join(f"{line}\n" for line in lines), LIMIT)
        except Exception:  # as logging's own handlers: no log is worth one
            self.handleError(record)
            return
        for line in lines:
            self._hand_on(line)

    def say(self, time_us: int, source: str, text: str) -> None:
        """Hand on a line of another program of this node."""
        own = self.format_line
        self._hand_on(LogLine(time_us, own.node, own.view, source, text))

    def _hand_on(self, line: LogLine) -> None:
        if self._loop is None:
            self._early.append(line)
        elif threading.get_ident() == self._thread:
            for outlet in self._outlets:
                outlet(line)
        else:
            self._loop.call_soon_threadsafe(self._hand_on, line)

    def open(self, outlets: list[Outlet]) -> None:
        """Hand every line to `outlets` from now on, first those kept; called in the event loop."""
        self._loop = asyncio.get_running_loop()
        self._outlets = outlets
        while self._early:
            self._hand_on(self._early.popleft())


def set_up_logging(node: int) -> NodeLog:
    """Have all that is logged in this process go to the node's log."""
    log = NodeLog(node)
    logging.basicConfig(handlers=[log], level=logging.INFO)
    return log


def set_view(number: int) -> None:
    """Lines are of view `number` from now on."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, NodeLog):
            handler.format_line.view = number
