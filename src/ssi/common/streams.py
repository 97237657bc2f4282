"""The bytes of a command that runs elsewhere: chunks one way, credit the other.

Without credit a reader that sleeps would make the line fill up, and a request to fence would wait
behind somebody's `cat`.
"""

from __future__ import annotations

import asyncio

from ssi.common.wire import WINDOW


class Credit:
    """How many bytes may still be sent on one stream."""

    def __init__(self, window: int = WINDOW) -> None:
        self._free = window
        self._more = asyncio.Event()

    def add(self, count: int) -> None:
        """The receiver has used `count` bytes."""
        self._free += count
        self._more.set()

    async def take(self, count: int) -> None:
        """Wait until `count` bytes may be sent, and count them as sent."""
        while self._free < count:
            self._more.clear()
            await self._more.wait()
        self._free -= count
