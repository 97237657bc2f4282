"""How programs of a node's userland talk to its daemon: one request, then frames both ways.

docs/protocol.md has the format; native/local.h is the same in C. All numbers are little-endian.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import struct
from collections.abc import Iterator, Sequence

from ssi.common.errors import ProtocolError

FOLDER = "/run/ssi"
"""The socket's folder in the userland; where it is missing, there is no cluster."""

SOCKET_NAME = "ssid.sock"

VERSION = 1

MAX_REQUEST = 256 * 1024
"""Bytes of a request at most, behind its length."""

MAX_FRAME = 64 * 1024
"""Bytes in a frame at most, behind its head."""

WINDOW = 64 * 1024
"""Bytes of standard input that may be under way before the daemon gave credit for more."""

LENGTH = struct.Struct("<I")
HEAD = struct.Struct("<BI")
_FIELDS = struct.Struct("<IIII")  # version, strings in argv, strings in the environment, umask


class Reply(enum.IntEnum):
    """What a frame from the daemon is."""

    ACCEPTED = 0
    STDOUT = 1
    STDERR = 2
    END = 3
    CREDIT = 4
    ORDER = 5


class Given(enum.IntEnum):
    """What a frame to the daemon is."""

    STDIN = 1
    END_OF_STDIN = 3
    SIGNAL = 4
    REPORT = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """What a program asks for: itself, as the kernel would start it."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    cwd: str
    """Empty if the folder is gone."""
    umask: int


def encode_call(
    argv: Sequence[str], environment: Sequence[str] = (), cwd: str = "/", umask: int = 0o22
) -> bytes:
    """Return a request, its length in front."""
    strings = [*argv, *environment, cwd]
    body = _FIELDS.pack(VERSION, len(argv), len(environment), umask)
    body += b"".join(os.fsencode(text) + b"\0" for text in strings)
    if len(body) > MAX_REQUEST:
        raise ProtocolError(f"a request of {len(body)} bytes; {MAX_REQUEST} are the most")
    return LENGTH.pack(len(body)) + body


def parse_length(data: bytes) -> int:
    """Return how long the request is, or raise ProtocolError."""
    (length,) = LENGTH.unpack(data)
    if not _FIELDS.size < length <= MAX_REQUEST:
        raise ProtocolError(f"a request of {length} bytes")
    return int(length)


def parse_call(body: bytes) -> Call:
    """Return the request in `body`, without the length in front, or raise ProtocolError."""
    if len(body) <= _FIELDS.size or body[-1]:
        raise ProtocolError("a request whose last string does not end")
    version, argc, envc, umask = _FIELDS.unpack_from(body)
    if version != VERSION:
        raise ProtocolError(f"a request of version {version}")
    strings = body[_FIELDS.size : -1].split(b"\0")
    if argc < 1 or argc + envc + 1 != len(strings):
        raise ProtocolError(f"{len(strings)} strings, but {argc} and {envc} and a folder are said")
    if umask > 0o777:
        raise ProtocolError(f"umask {umask:#o}")
    texts = [os.fsdecode(string) for string in strings]
    environment: dict[str, str] = {}
    for text in texts[argc:-1]:
        name, equals, value = text.partition("=")
        if name and equals:
            environment.setdefault(name, value)  # of two the first counts, as for getenv
    return Call(tuple(texts[:argc]), environment, texts[-1], umask)


def encode_frame(kind: Reply | Given, data: bytes = b"") -> bytes:
    """Return one frame."""
    return HEAD.pack(kind, len(data)) + data


def encode_frames(kind: Reply | Given, data: bytes) -> Iterator[bytes]:
    """Yield the frames that carry `data`, however long."""
    for start in range(0, len(data), MAX_FRAME):
        yield encode_frame(kind, data[start : start + MAX_FRAME])


def encode_number(kind: Reply | Given, number: int) -> bytes:
    """Return a frame with a number."""
    return encode_frame(kind, LENGTH.pack(number))


def parse_number(data: bytes) -> int:
    """Return the number in a frame, or raise ProtocolError."""
    if len(data) != LENGTH.size:
        raise ProtocolError(f"{len(data)} bytes for a number")
    (number,) = LENGTH.unpack(data)
    return int(number)


def parse_head(data: bytes) -> tuple[int, int]:
    """Return kind and length of a frame, or raise ProtocolError."""
    kind, length = HEAD.unpack(data)
    if length > MAX_FRAME:
        raise ProtocolError(f"a frame of {length} bytes")
    return int(kind), int(length)
