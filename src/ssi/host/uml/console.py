"""A node's console: everything it says is logged; people attach to it and leave again."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

KEPT = 32 * 1024
"""Bytes of the past that somebody who attaches is shown."""

BEHIND = 1 << 20
"""Bytes that may wait for somebody who does not read before he is left out."""

Watcher = Callable[[bytes], None]


class Console:
    """The host's end of a node's console."""

    def __init__(self, log: Path) -> None:
        """Make the console; `uml_end` is for the UML process and closed once it has it."""
        ours, self.uml_end = socket.socketpair()
        ours.setblocking(False)
        self._socket = ours
        self._log = log.open("ab", buffering=0)
        self._past = collections.deque[bytes]()
        self._past_size = 0
        self._watchers: set[Watcher] = set()
        self._typed = bytearray()
        asyncio.get_running_loop().add_reader(ours, self._read)

    def _read(self) -> None:
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._socket)
            return
        with contextlib.suppress(OSError):  # a full disk must not end the node
            self._log.write(data)
        self._remember(data)
        for watcher in tuple(self._watchers):
            watcher(data)

    def _remember(self, data: bytes) -> None:
        self._past.append(data)
        self._past_size += len(data)
        while self._past_size - len(self._past[0]) >= KEPT:
            self._past_size -= len(self._past.popleft())

    @property
    def past(self) -> bytes:
        """The last things it said."""
        return b"".join(self._past)[-KEPT:]

    def attach(self, watcher: Watcher) -> None:
        """Call `watcher` with what the console says from now on."""
        self._watchers.add(watcher)

    def detach(self, watcher: Watcher) -> None:
        """Call `watcher` no more."""
        self._watchers.discard(watcher)

    def type(self, data: bytes) -> None:
        """Type `data` at the console."""
        # A terminal nobody reads holds 4 KB; who types on gets no more in, as on a real one.
        self._typed += data[: max(0, KEPT - len(self._typed))]
        self._flush()

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            sent = self._socket.send(self._typed) if self._typed else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._typed.clear()
            return
        del self._typed[:sent]
        if self._typed:
            loop.add_writer(self._socket, self._flush)
        else:
            loop.remove_writer(self._socket)

    def close(self) -> None:
        """End it; the log is whole."""
        self._read()
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        loop.remove_writer(self._socket)
        self._socket.close()
        self.uml_end.close()
        self._log.close()
