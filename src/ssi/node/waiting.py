"""Waiting for what announces nothing: kernel files, and processes that are nobody's children."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

STEP_S = 0.02


async def wait_until(true: Callable[[], bool], *, within_s: float) -> bool:
    """Look until `true()` holds; False if the time is up first."""
    try:
        async with asyncio.timeout(within_s):
            while not true():  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(STEP_S)
    except TimeoutError:
        return False
    return True
