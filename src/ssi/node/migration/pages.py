"""The memory of a process on its way: as CRIU sends it to its page server, straight into images.

CRIU's own server would be another process to start in the time in which nothing runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import mmap
import os
import select
import socket
import struct
import time
from pathlib import Path

from ssi.common.errors import ProtocolError
from ssi.node.migration.images import COMMON_MAGIC, Fields

_HEAD = struct.Struct("=IIQQ")
_WORD = struct.Struct("=I")

_PAGEMAP_MAGIC = 0x56084025
_PAGE = mmap.PAGESIZE

_COMMAND_BITS, _TYPE_BITS = 16, 8
_PRESENT = 4
"""The flag of pages that follow their head."""

_OF_PROCESS = 1
_TYPES = {_OF_PROCESS: "pagemap-", 2: "pagemap-shmem-"}

PIECE = 1024 * 1024
"""Bytes that are waited for at once. 256 KiB are a third slower, and so is a file that is mapped,
so that they are copied once: each of its pages costs a call of the host."""


STEP = 4 * 1024 * 1024
"""Bytes for which memory is found at a time."""


class _Command(enum.IntEnum):
    OPEN = 4
    ADD = 6
    CLOSE = 0x1023
    FORCE_CLOSE = 0x1024


class _Pages:
    """A file of pages, to whose end pages are put from a connection."""

    def __init__(self, path: Path, buffer: bytearray) -> None:
        self._file = path.open("xb", buffering=0)
        self._buffer = buffer
        self._made = 0

    def make_room(self, connection: socket.socket, size: int) -> None:
        """Have memory for so many bytes, as far as that is found before something comes."""
        made, ready = 0, select.poll()
        ready.register(connection, select.POLLIN)
        while made < size and not ready.poll(0):
            os.posix_fallocate(self._file.fileno(), made, STEP)
            made += STEP
        self._made = made

    def take(self, connection: socket.socket, size: int) -> None:
        """Have the next `size` bytes of a connection at the end."""
        while size:
            with memoryview(self._buffer)[:size] as view:
                _receive_into(connection, view)
                size -= len(view)
                written = 0
                while written < len(view):
                    written += self._file.write(view[written:])

    def close(self) -> None:
        if self._made > self._file.tell():
            self._file.truncate()
        self._file.close()


def _receive_into(connection: socket.socket, view: memoryview) -> None:
    if connection.recv_into(view, len(view), socket.MSG_WAITALL) != len(view):
        raise ProtocolError("the pages have no end")


def _entry(fields: dict[int, int]) -> bytes:
    entry = Fields()
    for number, value in fields.items():
        entry.set(number, value)
    body = entry.dump()
    return _WORD.pack(len(body)) + body


class _Memory:
    """One address space: where its pages were, and what was in them."""

    def __init__(
        self, folder: Path, kind: int, identity: int, number: int, buffer: bytearray
    ) -> None:
        self._map = (folder / f"{_TYPES[kind]}{identity}.img").open("xb")
        try:
            self._map.write(_WORD.pack(COMMON_MAGIC) + _WORD.pack(_PAGEMAP_MAGIC))
            self._map.write(_entry({1: number}))
            self._pages = _Pages(folder / f"pages-{number}.img", buffer)
        except BaseException:
            self._map.close()
            raise

    def make_room(self, connection: socket.socket, size: int) -> None:
        """Have memory for so many bytes of pages, as far as there is time."""
        self._pages.make_room(connection, size)

    def add(self, connection: socket.socket, address: int, count: int, flags: int) -> None:
        self._map.write(_entry({1: address, 2: count, 4: flags}))
        if flags & _PRESENT:
            self._pages.take(connection, count * _PAGE)

    def close(self) -> None:
        self._map.close()
        self._pages.close()


@dataclasses.dataclass(frozen=True, slots=True)
class Received:
    """How much came, and how long that took: from the first word of pages to the last page."""

    pages: int = 0
    seconds: float = 0.0
    read: float = 0.0
    """How much of that until the first page: the dump reads what there is."""


def receive(connection: socket.socket, folder: Path, expected: int = 0) -> Received:
    """Write what a dump sends into images; raises OSError, ProtocolError.

    As many pages as are expected have their memory before they come, as long as the dump reads.
    """
    memory: _Memory | None = None
    numbers = pages = 0
    began = first = ended = time.monotonic()
    head, buffer = bytearray(_HEAD.size), bytearray(PIECE)
    with contextlib.ExitStack() as opened:
        while True:
            _receive_into(connection, memoryview(head))
            word, count, address, place = _HEAD.unpack(head)
            command, flags = word & ((1 << _COMMAND_BITS) - 1), word >> _COMMAND_BITS
            if command in {_Command.CLOSE, _Command.FORCE_CLOSE}:
                break
            if command == _Command.OPEN:
                began = began if numbers else time.monotonic()
                kind, identity = place & ((1 << _TYPE_BITS) - 1), place >> _TYPE_BITS
                if kind not in _TYPES:
                    raise ProtocolError(f"pages of kind {kind}")
                numbers += 1
                memory = _Memory(folder, kind, identity, numbers, buffer)
                opened.callback(memory.close)
                # There are no older images in which some of its pages might be.
                connection.sendall(b"\0")
                if kind == _OF_PROCESS:
                    memory.make_room(connection, expected * _PAGE)
            elif command == _Command.ADD and memory:
                first = first if pages else time.monotonic()
                memory.add(connection, address, count, flags)
                pages += count if flags & _PRESENT else 0
                ended = time.monotonic()
            else:
                raise ProtocolError(f"command {command} about pages")
    # That all is here, without an error.
    connection.sendall(_WORD.pack(0))
    return Received(pages, ended - began, first - began)
