"""Points at which a test has something die: this daemon, this node, CRIU, connections."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

FILE = Path("/run/ssi/public/fault")
"""Holds a point's name, and behind it "node", "criu" or "cut" if not the daemon ends but that; or
"wait", until somebody writes to REACHED. It is only in tests; in the userland it is in /run/ssi."""

REACHED = Path("/run/ssi/public/fault.reached")
STEP_S = 0.02
KILLED_S = 5.0


def hit(point: str, criu: int = 0) -> bool:
    """Have that happen here which is wished; tell whether something was."""
    try:
        wished, *what = FILE.read_text().split()
    except (OSError, ValueError):
        return False
    if wished != point:
        return False
    FILE.unlink()
    match what:
        case ["node"]:
            Path("/proc/sysrq-trigger").write_text("c")
        case ["criu"]:
            with contextlib.suppress(ProcessLookupError), _opened(criu or os.getpid()) as pidfd:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                # Here, not soon after.
                select.select([pidfd], [], [], KILLED_S)
        case ["cut"]:
            cut()
        case ["wait"]:
            REACHED.touch()
            while not REACHED.stat().st_size:
                time.sleep(STEP_S)
        case _:
            os.kill(os.getpid(), signal.SIGKILL)
    return True


@contextlib.contextmanager
def _opened(pid: int) -> Iterator[int]:
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def cut() -> None:
    """Break all connections with other nodes."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            with socket.socket(fileno=os.dup(fd)) as one:
                if one.family == socket.AF_INET:
                    one.getpeername()
                    one.shutdown(socket.SHUT_RDWR)
