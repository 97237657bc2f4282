"""Room for a process that comes: its images, and the memory that is made of them."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from ssi.node.migration.criu import CannotMove
from ssi.node.root import is_mounted, run
from ssi.node.smallfiles import read_text

FOLDER = Path("/run/ssi/arrivals")

AT_ONCE = 128 * 1024 * 1024
"""CRIU takes so much out of the images before it gives back what it has taken."""

SPARE = 16 * 1024 * 1024
"""For CRIU itself."""


async def make(name: str) -> Path:
    """Return a folder for the images of one process; raises OSError, SsiError."""
    FOLDER.mkdir(exist_ok=True)
    if not is_mounted(FOLDER):
        # Of its own: what is mounted above is half as large as the memory at most.
        await run("mount", "-t", "tmpfs", "-o", "mode=700,size=100%", "arrivals", os.fspath(FOLDER))
    folder = FOLDER / name
    folder.mkdir(mode=0o700)
    return folder


def needed(pages: int, *, lazy: bool = False) -> int:
    """Return how many bytes a process takes that has so many pages, while it is restored.

    What comes later is not among the images.
    """
    size = pages * mmap.PAGESIZE
    return size + (0 if lazy else min(size, AT_ONCE)) + SPARE


def check(pages: int, promised: int = 0, *, lazy: bool = False) -> None:
    """Raise CannotMove if there is no room here for a process with so many pages.

    As many as are `promised` are still to come for others.
    """
    fields = dict(line.split(":") for line in read_text("/proc/meminfo").splitlines())
    available, swap = (int(fields[name].split()[0]) for name in ("MemAvailable", "SwapFree"))
    # Swap is compressed memory: what goes there takes half of its size, say.
    free = (available + swap // 2) * 1024 - promised * mmap.PAGESIZE
    if (wanted := needed(pages, lazy=lazy)) > free:
        mib = [each // 2**20 for each in (wanted, free)]
        raise CannotMove(f"it takes {mib[0]} MiB there to come, and {mib[1]} MiB are free")
