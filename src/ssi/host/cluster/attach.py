"""This terminal attached to a node's console."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import termios
import tty
from collections.abc import Iterator

from ssi.common import wire
from ssi.common.line import Line
from ssi.common.wire import Message
from ssi.host.cluster.client import connect, converse
from ssi.host.cluster.spec import ClusterPlace

DETACH = b"\x1d"
"""Ctrl-], as telnet(1) has it."""


@contextlib.contextmanager
def _raw_terminal() -> Iterator[bool]:
    """Have every key reach the node; yields whether standard input is a terminal."""
    if not os.isatty(0):
        yield False
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield True
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


class _Session:
    def __init__(self, line: Line) -> None:
        self._line = line
        self.left = asyncio.Event()

    def hear(self, message: Message) -> None:
        """Show what the console says."""
        if message.get("is") == "console":
            data = wire.get_bytes(message, "data")
            rest = data
            while rest:
                rest = rest[os.write(1, rest) :]
            self._line.post({"is": "seen", "bytes": len(data)})

    def type(self) -> None:
        """Send what was typed."""
        data = os.read(0, 4096)
        typed, detach, _ = data.partition(DETACH)
        if typed:
            self._line.post({"is": "type", "data": wire.put_bytes(typed)})
        if detach or not data:
            asyncio.get_running_loop().remove_reader(0)
            self.left.set()

    def tell_size(self) -> None:
        """Tell the node how large this terminal is."""
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(0)
            self._line.post({"is": "size", "rows": size.lines, "columns": size.columns})


async def _attach(place: ClusterPlace, node: int) -> bool:
    loop = asyncio.get_running_loop()
    async with connect(place) as line:
        session = _Session(line)
        request = {"do": "console", "node": node, "past": True}
        talking = asyncio.create_task(converse(line, request, session.hear))
        leaving = asyncio.create_task(session.left.wait())
        loop.add_signal_handler(signal.SIGWINCH, session.tell_size)
        try:
            with contextlib.suppress(PermissionError):  # a file: nobody types there
                loop.add_reader(0, session.type)
            await asyncio.sleep(0)  # the request first
            session.tell_size()
            await asyncio.wait({talking, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return bool(talking.result().get("lost")) if talking.done() else False
        finally:
            loop.remove_reader(0)
            talking.cancel()
            leaving.cancel()


def attach_console(place: ClusterPlace, node: int) -> bool:
    """Attach to the console of `node`; return whether that node was lost (else: we left)."""
    with _raw_terminal():
        return asyncio.run(_attach(place, node))
