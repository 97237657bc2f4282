"""Waiting for a condition that somebody else's action makes true."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Changes:
    """Those who wait look again each time `tell` is called."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        """Something has changed."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait_for(self, true: Callable[[], bool]) -> None:
        """Wait until `true()` holds; it is asked now and after every change."""
        while not true():
            await self.wait()

    async def wait(self) -> None:
        """Wait for the next change."""
        await self._event.wait()
