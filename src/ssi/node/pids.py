"""This node's range of PIDs: what people start has a number that no other node gives.

A PID is ``node << 15 | local``. The kernel counts on from the last one it gave, and after the
highest it begins again at 300, which is out of our range; so we set it back before it comes to
that. A node begins anywhere in its range: after a reboot, numbers from before may still be those
of processes elsewhere. What was started before the userland (kernel threads, the ramdisk's daemons)
keeps its low number and belongs to the node alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

BITS = 15
RANGE = 1 << BITS

LAST = Path("/proc/sys/kernel/ns_last_pid")
HIGHEST = Path("/proc/sys/kernel/pid_max")
NODE = Path("/proc/sys/kernel/node")
"""What /proc/PID/where says (proc-where.patch)."""

MOST = 1 << 22

LOOK_S = 0.25
SPARE = 8192
"""So many may be given between two looks."""


def first_pid(node: int) -> int:
    """Return the lowest PID of `node`."""
    return node << BITS


def origin_of(pid: int) -> int:
    """Return the node whose range `pid` is from; 0 for what belongs to each node alone."""
    return pid >> BITS


def claim_range(node: int) -> None:
    """Have this kernel give PIDs of `node` from now on."""
    highest = first_pid(node) + RANGE
    if NODE.exists():  # a kernel without the patch has none
        NODE.write_text(f"{node}\n")
    if int(HIGHEST.read_text()) != highest:
        HIGHEST.write_text(f"{highest}\n")
        LAST.write_text(f"{first_pid(node) + secrets.randbelow(RANGE - 2 * SPARE)}\n")


_wishes = 0
"""So many want a PID that may be of a higher node."""


@contextlib.contextmanager
def any_pid(node: int, pid: int) -> Iterator[None]:
    """Have this kernel let somebody have `pid`, of whichever range, as long as this lasts."""
    global _wishes  # noqa: PLW0603
    if pid < first_pid(node) + RANGE:
        yield
        return
    _wishes += 1
    HIGHEST.write_text(f"{MOST}\n")
    try:
        yield
    finally:
        _wishes -= 1
        if not _wishes:
            HIGHEST.write_text(f"{first_pid(node) + RANGE}\n")


async def keep_range(node: int) -> None:
    """Set the kernel back before it leaves the range, until cancelled."""
    limit = first_pid(node) + RANGE - SPARE
    # A daemon that was killed may have left it open.
    HIGHEST.write_text(f"{first_pid(node) + RANGE}\n")
    while True:
        await asyncio.sleep(LOOK_S)  # nothing tells of it
        last = int(LAST.read_text())
        if last >= limit or last < first_pid(node):
            logger.info("PIDs begin again: the last was %d", last)
            LAST.write_text(f"{first_pid(node)}\n")
