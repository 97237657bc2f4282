"""What is waited for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ssi.node.waiting import close_by_thread


def test_a_descriptor_is_closed_though_who_closes_it_is_cancelled() -> None:
    go_on = threading.Event()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, go_on.wait)
        fd = os.memfd_create("file")
        closing = asyncio.create_task(close_by_thread(fd))
        await asyncio.sleep(0)  # it waits for the only thread now
        closing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await closing
        os.fstat(fd)  # it is open yet: the test would show nothing otherwise
        go_on.set()
        await busy
        await loop.shutdown_default_executor()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)

    asyncio.run(run())
