"""Tells everybody who has a terminal on this node.

Terminals are found by who runs on them: trixie's wall(1) asks systemd-logind, which no node has.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from ssi.node.processes import list_userland, read_stat

PTS = range(136, 144)
"""The kernel's major numbers of pseudo terminals, 256 each."""


def _find_devices() -> set[int]:
    """Return the device numbers of the terminals on which something of the userland runs."""
    devices = set()
    for pid in list_userland():
        with contextlib.suppress(OSError):
            fields = read_stat(pid)
            devices.add(int(fields[4]))
    return devices - {0}


def _find_path(device: int) -> Path | None:
    major = os.major(device)
    if major in PTS:
        return Path(f"/dev/pts/{(major - PTS.start) * 256 + os.minor(device)}")
    return next((p for p in Path("/dev").glob("tty*") if p.stat().st_rdev == device), None)


def wall(node: str, text: str) -> None:
    """Write `text` to each terminal; what one does not take at once is lost."""
    when = time.strftime("%H:%M:%S", time.gmtime())
    message = f"\a\n\nBroadcast message from root@{node} ({when} UTC):\n\n{text}\n\n"
    for device in _find_devices():
        path = _find_path(device)
        with contextlib.suppress(OSError):
            if path is not None:
                _write(path, message.replace("\n", "\r\n").encode())


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
