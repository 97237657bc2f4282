"""Connections that come: none is left open when who accepts or attends it is cancelled.

The event loop's own sock_accept() loses one that has come in the moment of the cancellation, and
a task that is cancelled before its first step never closes what it was given.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any

from ssi.node.waiting import wait_readable


async def accept(listener: socket.socket) -> tuple[socket.socket, Any]:
    """Return a connection, which does not block, and whose it is; raises OSError."""
    while True:
        try:
            connection, address = listener.accept()
        except BlockingIOError:
            await wait_readable(listener.fileno())
        else:
            connection.setblocking(False)
            return connection, address


def attend(
    group: asyncio.TaskGroup, connection: socket.socket, attending: Coroutine[Any, Any, None]
) -> None:
    """Have `attending` run in `group`, and the connection closed then."""

    def end(_: asyncio.Task[None]) -> None:
        connection.close()

    group.create_task(attending).add_done_callback(end)
