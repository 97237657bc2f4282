"""Waiting: for descriptors, their close, and what announces nothing, as kernel files."""

from __future__ import annotations

import asyncio
import os
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


async def wait_readable(fd: int) -> None:
    """Wait until there is something to be read: of a process's descriptor, its end."""
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


async def close_by_thread(fd: int) -> None:
    """Close it where waiting harms nobody; it is closed even if who waits for that is cancelled."""
    # A device's last close waits for our own answer. What to_thread() has not begun yet would be
    # taken back by a cancellation.
    loop = asyncio.get_running_loop()
    await asyncio.shield(loop.run_in_executor(None, os.close, fd))
