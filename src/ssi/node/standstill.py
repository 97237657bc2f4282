"""If this daemon stands still, what each of its threads is doing is said on the node's console.

A log would not do: nobody carries it then. The usual reason is a call that waits for the root, in
the one thread that must not.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os

CONSOLE = "/dev/console"
STILL_S = 20.0


async def watch(path: str = CONSOLE, within_s: float = STILL_S) -> None:
    """Have that said whenever the loop has not turned for so long; until cancelled."""
    console = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        while True:
            faulthandler.dump_traceback_later(within_s, file=console)
            await asyncio.sleep(within_s / 4)
    finally:
        faulthandler.cancel_dump_traceback_later()
        os.close(console)
