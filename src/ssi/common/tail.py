"""Reading what others append to a file."""

from __future__ import annotations

import contextlib
import os
from io import FileIO
from pathlib import Path

MAX_LINE = 64 * 1024
"""Bytes after which a line without an end is taken for one."""


class Tail:
    """Reads a file's lines as they come, also after it was truncated or begun anew."""

    def __init__(self, path: Path, *, at_end: bool = False) -> None:
        """With `at_end` only what comes from now on is read."""
        self._path = path
        self._begun = b""
        self._file = self._open()
        if at_end and self._file:
            self._file.seek(0, os.SEEK_END)

    def _open(self) -> FileIO | None:
        with contextlib.suppress(FileNotFoundError):
            return FileIO(self._path)
        return None

    def _is_replaced(self, file: FileIO) -> bool:
        try:
            return not os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False  # a new one may follow

    def _read(self) -> bytes:
        self._file = self._file or self._open()
        if self._file is None:
            return b""
        if os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)
            self._begun = b""
        data = self._file.readall() or b""
        if self._is_replaced(self._file):
            # Its writer may have added a last line before.
            data += self._file.readall() or b""
            self.close()
            self._file = self._open()
            data += (self._file and self._file.readall()) or b""
        return data

    def read_lines(self) -> list[str]:
        """Return the lines that have been ended since the last call."""
        data = self._read()  # first, as it forgets a line that was truncated away
        *lines, self._begun = (self._begun + data).split(b"\n")
        if len(self._begun) > MAX_LINE:
            lines.append(self._begun)
            self._begun = b""
        return [line.decode(errors="backslashreplace") for line in lines]

    def size(self) -> int:
        """Return how many bytes have been read, which are as many as the file has."""
        return self._file.tell() if self._file else 0

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()
            self._file = None
