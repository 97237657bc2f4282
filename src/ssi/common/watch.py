"""inotify(7): a descriptor that is readable when files or folders have changed."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

IN_MODIFY = 0x2
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE_SELF = 0x400


class Watch:
    """Watches files for writing, folders for new files and for writing to any in them."""

    def __init__(self, paths: Iterable[Path]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"inotify: {os.strerror(number)}")
        for path in paths:
            mask = IN_MODIFY | IN_MOVED_TO | IN_CREATE | IN_DELETE_SELF
            if libc.inotify_add_watch(self._fd, os.fsencode(path), mask) < 0:
                number = ctypes.get_errno()
                os.close(self._fd)
                raise OSError(number, os.strerror(number), os.fspath(path))

    def fileno(self) -> int:
        """Return the descriptor."""
        return int(self._fd)

    def clear(self) -> None:
        """Forget the changes so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                os.read(self._fd, 64 * 1024)

    def close(self) -> None:
        """Watch no more."""
        os.close(self._fd)
