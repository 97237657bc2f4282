"""A node's console: everything it says is logged; people attach to it and leave again."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
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
        """Make the console; `uml_ends` are for the UML process, closed once it has them."""
        # Pipes: UML writes an echo byte by byte, and a socket has no room for more than 300 writes.
        # What finds no room is not echoed until the next key, if at all.
        uml_input, self._typing = os.pipe()
        self._saying, uml_output = os.pipe()
        self.uml_ends: tuple[int, ...] = (uml_input, uml_output)
        for end in (self._typing, self._saying):
            os.set_blocking(end, False)
        self._log = log.open("ab", buffering=0)
        self._past = collections.deque[bytes]()
        self._past_size = 0
        self._watchers: set[Watcher] = set()
        self._typed = bytearray()
        asyncio.get_running_loop().add_reader(self._saying, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._saying, 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._saying)
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
            sent = os.write(self._typing, self._typed) if self._typed else 0
        except BlockingIOError:
            sent = 0
        except OSError:  # nobody hears it any more
            sent = len(self._typed)
        del self._typed[:sent]
        if self._typed:
            loop.add_writer(self._typing, self._flush)
        else:
            loop.remove_writer(self._typing)

    def close_uml_ends(self) -> None:
        """Close what the UML process has by now, or will never have."""
        for end in self.uml_ends:
            os.close(end)
        self.uml_ends = ()

    def close(self) -> None:
        """End it; the log is whole."""
        self._read()
        self.close_uml_ends()
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._saying)
        loop.remove_writer(self._typing)
        os.close(self._saying)
        os.close(self._typing)
        self._log.close()
