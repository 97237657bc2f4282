"""A process with one child, which it does not wait for until it is told to."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

SCRIPT = """\
import os, signal, sys
pid = os.fork()
if pid == 0:
    while True:
        signal.pause()
signal.signal(signal.SIGCHLD, lambda *_: print("heard", flush=True))
print(pid, flush=True)
sys.stdin.readline()
print(os.waitpid(pid, 0)[1], flush=True)
"""


@contextlib.contextmanager
def parent() -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Yield the child's PID, and the parent."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        yield int(line_of(process.stdout)), process
        process.kill()


def line_of(file: IO[str] | None) -> str:
    """Return the next line of a process's output."""
    assert file
    return file.readline().strip()


def state_of(pid: int) -> str:
    """Return a process's state, as /proc has it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
