"""Files that are read or written whole, in as few system calls as that takes.

open() of Python makes four more, to find out what it has opened: a fifth of a millisecond on a
virtual node. A move reads a hundred files, and `ps` two of each process.
"""

from __future__ import annotations

import os

_AT_ONCE = 64 * 1024
_MODE = 0o666


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return what is in a file; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(fd, _AT_ONCE)
        # Files of /proc come in pieces, and do not know how long they are.
        while more := os.read(fd, _AT_ONCE):
            data += more
        return data
    finally:
        os.close(fd)


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the text in a file; what is no UTF-8 is replaced. Raises OSError."""
    return read_bytes(path).decode(errors="replace")


def write_bytes(path: str | os.PathLike[str], data: bytes, flags: int = os.O_TRUNC) -> None:
    """Have a file hold that and nothing else; O_EXCL as flag: a new one. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, _MODE)
    try:
        with memoryview(data) as view:
            written = 0
            while written < len(view):
                written += os.write(fd, view[written:])
    finally:
        os.close(fd)
