"""CRIU's images: files of protobuf messages, changed without knowing most of what is there.

A message is a list of numbered fields; what we do not know is kept as it is. The numbers that we do
know are in rewrite.py. The protobuf library would do the same with CRIU's own descriptions of all
messages: a second to load and ten megabytes in each node's ramdisk.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from ssi.common.errors import ProtocolError
from ssi.node.smallfiles import read_bytes, write_bytes

_WORD = struct.Struct("=I")

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

COMMON_MAGIC = 0x54564319
"""The first word of an image; the second says of what kind it is."""

MAX_VARINT = 10

Value = int | bytes


class Fields:
    """One message: fields in the order in which they came."""

    def __init__(self, data: bytes = b"") -> None:
        """Parse it; raises ProtocolError."""
        self._fields: list[tuple[int, int, Value]] = list(_parse(data))

    def numbers(self, field: int) -> list[int]:
        """Return the values of a field of numbers, none if it is missing."""
        return [
            value for number, kind, value in self._fields
            if number == field and kind == VARINT and isinstance(value, int)
        ]  # fmt: skip

    def number(self, field: int, default: int = 0) -> int:
        """Return the value of a field that is a number."""
        return next(iter(self.numbers(field)), default)

    def texts(self, field: int) -> list[bytes]:
        """Return the values of a field of bytes, texts or messages."""
        return [
            value for number, _, value in self._fields
            if number == field and isinstance(value, bytes)
        ]  # fmt: skip

    def text(self, field: int) -> bytes:
        """Return the value of a field of bytes, empty if it is missing."""
        return next(iter(self.texts(field)), b"")

    def has(self, field: int) -> bool:
        """Tell whether a field is there."""
        return any(number == field for number, _, _ in self._fields)

    def drop(self, *fields: int) -> None:
        """Remove fields."""
        self._fields = [one for one in self._fields if one[0] not in fields]

    def set(self, field: int, value: int | bytes) -> None:
        """Give a field one value, at its old place if it had one."""
        kind = VARINT if isinstance(value, int) else BYTES
        for index, (number, _, _) in enumerate(self._fields):
            if number == field:
                self._fields[index] = (field, kind, value)
                return
        self._fields.append((field, kind, value))

    def append(self, field: int, value: bytes) -> None:
        """Add one more value to a field."""
        self._fields.append((field, BYTES, value))

    def change(self, field: int, change: Callable[[Fields], None]) -> None:
        """Change each message that is in a field."""
        for index, (number, kind, value) in enumerate(self._fields):
            if number == field and isinstance(value, bytes):
                inner = Fields(value)
                change(inner)
                self._fields[index] = (number, kind, inner.dump())

    def dump(self) -> bytes:
        """Return it as it is sent."""
        return b"".join(_dump(*one) for one in self._fields)


def _parse(data: bytes) -> Iterator[tuple[int, int, Value]]:
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        kind = key & 7
        value: Value
        if kind == VARINT:
            value, at = _read_varint(data, at)
        elif kind == BYTES:
            size, at = _read_varint(data, at)
            value, at = _take(data, at, size)
        elif kind in {FIXED64, FIXED32}:
            value, at = _take(data, at, 8 if kind == FIXED64 else 4)
        else:
            raise ProtocolError(f"an image with a field of kind {kind}")
        yield key >> 3, kind, value


def _take(data: bytes, at: int, size: int) -> tuple[bytes, int]:
    if at + size > len(data):
        raise ProtocolError("an image that ends within a field")
    return data[at : at + size], at + size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[at : at + MAX_VARINT]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise ProtocolError("an image that ends within a number")


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def _dump(field: int, kind: int, value: Value) -> bytes:
    key = _varint(field << 3 | kind)
    if isinstance(value, int):
        return key + _varint(value)
    return key + (_varint(len(value)) if kind == BYTES else b"") + value


class Image:
    """A file of such messages."""

    def __init__(self, path: Path) -> None:
        """Read it; raises OSError, ProtocolError."""
        self._path = path
        data = read_bytes(path)
        if len(data) < 2 * _WORD.size or _WORD.unpack_from(data)[0] != COMMON_MAGIC:
            raise ProtocolError(f"{path.name} is no image of CRIU's")
        self._head = data[: 2 * _WORD.size]
        self.entries: list[Fields] = []
        at = len(self._head)
        while at < len(data):
            part, at = _take(data, at, _WORD.size)
            body, at = _take(data, at, *_WORD.unpack(part))
            self.entries.append(Fields(body))

    def save(self) -> None:
        """Write it back."""
        bodies = (entry.dump() for entry in self.entries)
        parts = (_WORD.pack(len(body)) + body for body in bodies)
        write_bytes(self._path, self._head + b"".join(parts))
