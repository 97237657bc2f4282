"""The memory of a process on its way: as CRIU sends it to its page server, straight into images.

CRIU's own server would be another process to start in the time in which nothing runs.
"""

from __future__ import annotations

import collections
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
_HIGHEST = 2**64
_TYPES = {_OF_PROCESS: "pagemap-", 2: "pagemap-shmem-"}

PIECE = 1024 * 1024
"""Bytes that are waited for at once. 256 KiB are a third slower, and so is a file that is mapped,
so that they are copied once: each of its pages costs a call of the host."""


ROOM = "room"
"""Beside the images: the file for the next pages."""

STEP = 4 * 1024 * 1024
"""Bytes for which memory is found at a time."""


class _Command(enum.IntEnum):
    OPEN = 4
    ADD = 6
    CLOSE = 0x1023
    FORCE_CLOSE = 0x1024


_ENDS = {_Command.CLOSE, _Command.FORCE_CLOSE}


class _Pages:
    """A file of pages, to whose end pages are put from a connection."""

    def __init__(self, path: Path, buffer: bytearray) -> None:
        self._path = path
        self._file = path.open("xb", buffering=0)
        self._buffer = buffer
        self._made = 0

    def rename(self, path: Path) -> None:
        """Have it be called so."""
        self._path.rename(path)

    def make_room(self, connection: socket.socket, size: int) -> None:
        """Have memory for so many bytes, as far as that is found before something comes."""
        ready = select.poll()
        ready.register(connection, select.POLLIN)
        while self._made < size and not ready.poll(0):
            os.posix_fallocate(self._file.fileno(), self._made, STEP)
            self._made += STEP

    def take(self, connection: socket.socket, size: int) -> None:
        """Have the next `size` bytes of a connection at the end."""
        while size:
            with memoryview(self._buffer)[:size] as view:
                _receive_into(connection, view)
                size -= len(view)
                self.add(view)

    def add(self, data: bytes | memoryview) -> None:
        """Have these bytes at the end."""
        with memoryview(data) as view:
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


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    """Pages behind one another, and how they are."""

    address: int
    count: int
    flags: int

    @property
    def size(self) -> int:
        """How many bytes come behind it."""
        return self.count * _PAGE if self.flags & _PRESENT else 0


class _Memory:
    """One address space: where its pages were, and what was in them."""

    def __init__(self, folder: Path, kind: int, identity: int, number: int, pages: _Pages) -> None:
        pages.rename(folder / f"pages-{number}.img")
        self._pages = pages
        self._early: collections.deque[tuple[_Entry, bytes]] = collections.deque()
        """What has come before others that may be in front of it."""
        self._map = (folder / f"{_TYPES[kind]}{identity}.img").open("xb")
        try:
            self._map.write(_WORD.pack(COMMON_MAGIC) + _WORD.pack(_PAGEMAP_MAGIC))
            self._map.write(_entry({1: number}))
        except BaseException:
            self._map.close()
            raise

    def make_room(self, connection: socket.socket, size: int) -> None:
        """Have memory for so many bytes of pages, as far as there is time."""
        self._pages.make_room(connection, size)

    def _map_entry(self, entry: _Entry) -> None:
        self._map.write(_entry({1: entry.address, 2: entry.count, 4: entry.flags}))

    def keep(self, connection: socket.socket, entry: _Entry) -> None:
        """Take pages whose place is not known yet."""
        data = bytearray(entry.size)
        if data:
            _receive_into(connection, memoryview(data))
        self._early.append((entry, bytes(data)))

    def add(self, connection: socket.socket, entry: _Entry) -> None:
        """Take pages that come behind all that there are."""
        self.place_early(entry.address)
        self._map_entry(entry)
        self._pages.take(connection, entry.size)

    def place_early(self, below: int) -> None:
        """Have the pages that came early be there, up to an address."""
        while self._early and self._early[0][0].address < below:
            entry, data = self._early.popleft()
            self._map_entry(entry)
            self._pages.add(data)

    def close(self) -> None:
        self._map.close()


@dataclasses.dataclass(frozen=True, slots=True)
class Received:
    """How much came, and how long that took: from the first word of pages to the last page."""

    pages: int = 0
    seconds: float = 0.0
    read: float = 0.0
    """How much of that until the first page: the dump reads what there is."""


class _Receiver:
    """What comes by one connection."""

    def __init__(self, connection: socket.socket, folder: Path) -> None:
        self._connection = connection
        self._folder = folder
        self._opened = contextlib.ExitStack()
        self._head, self._buffer = bytearray(_HEAD.size), bytearray(PIECE)
        self._memory: _Memory | None = None
        """What the last pages were of."""
        self._process: _Memory | None = None
        self._room = self._open_pages()
        """For the pages of the next."""
        self._numbers = self._pages = 0
        self._began = self._first = self._ended = time.monotonic()

    def __enter__(self) -> _Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()
        (self._folder / ROOM).unlink()

    def _open_pages(self) -> _Pages:
        pages = _Pages(self._folder / ROOM, self._buffer)
        self._opened.callback(pages.close)
        return pages

    def take_all(self, expected: int, *, is_early: bool) -> None:
        """Take what a dump sends; what `is_early` is kept until it is known what comes besides."""
        # Before the dump says anything it has much to look at.
        self._room.make_room(self._connection, expected * _PAGE)
        while (head := self._read_head())[0] not in _ENDS:
            command, place, entry = head
            if command == _Command.OPEN:
                self._open(place, expected)
            elif command != _Command.ADD or not self._memory:
                raise ProtocolError(f"command {command} about pages")
            elif is_early and self._memory is self._process:
                self._memory.keep(self._connection, entry)
            else:
                self._add(self._memory, entry)

    def take_rest(self) -> None:
        """Take what was sent beside a dump, in order of the addresses."""
        memory = self._process
        if memory is None:
            raise ProtocolError("pages of no process")
        while (head := self._read_head())[0] not in _ENDS:
            command, _, entry = head
            if command != _Command.ADD:
                raise ProtocolError(f"command {command} about pages")
            self._add(memory, entry)
        memory.place_early(_HIGHEST)

    def tell(self) -> Received:
        """Return how much came, and how fast, but for what was early."""
        return Received(self._pages, self._ended - self._began, self._first - self._began)

    def _read_head(self) -> tuple[int, int, _Entry]:
        _receive_into(self._connection, memoryview(self._head))
        word, count, address, place = _HEAD.unpack(self._head)
        command, flags = word & ((1 << _COMMAND_BITS) - 1), word >> _COMMAND_BITS
        return command, place, _Entry(address, count, flags)

    def _open(self, place: int, expected: int) -> None:
        self._began = self._began if self._numbers else time.monotonic()
        kind, identity = place & ((1 << _TYPE_BITS) - 1), place >> _TYPE_BITS
        if kind not in _TYPES:
            raise ProtocolError(f"pages of kind {kind}")
        self._numbers += 1
        self._memory = _Memory(self._folder, kind, identity, self._numbers, self._room)
        self._opened.callback(self._memory.close)
        self._room = self._open_pages()
        # There are no older images in which some of its pages might be.
        self._connection.sendall(b"\0")
        if kind == _OF_PROCESS:
            self._process = self._memory
            self._memory.make_room(self._connection, expected * _PAGE)

    def _add(self, memory: _Memory, entry: _Entry) -> None:
        self._first = self._first if self._pages else time.monotonic()
        memory.add(self._connection, entry)
        self._pages += entry.size // _PAGE
        self._ended = time.monotonic()


def receive(
    connection: socket.socket, folder: Path, expected: int = 0, *, apart: bool = False
) -> Received:
    """Write what a dump sends into images; raises OSError, ProtocolError.

    As many pages as are expected have their memory before they come, as long as the dump reads.
    `apart`: of the large mappings they come behind the dump's.
    """
    with _Receiver(connection, folder) as receiver:
        receiver.take_all(expected, is_early=apart)
        # That all is here, without an error.
        connection.sendall(_WORD.pack(0))
        if apart:
            receiver.take_rest()
        return receiver.tell()
