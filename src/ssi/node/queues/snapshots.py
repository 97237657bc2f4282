"""Queues of other nodes as they were last heard of here, to be made anew when their node is dead.

In RAM, in a file each: a daemon that comes after one that was killed has them, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.wire import Message
from ssi.node.queues.keeper import MAX_KEPT
from ssi.node.state.queues import queue_name

FOLDER = Path("/run/ssi/queues-of-others")
PIECE = 32 * 1024
"""What goes between nodes at once."""

MAX_PARTIAL = 16
MAX_NUMBER = 2**64 - 1
_HEAD = struct.Struct("=QQ9I")
_VOID = 2**32 - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """One, with its beginning (struct queue_snapshot of native/queuekeeper.h)."""

    boot: str
    """The life of a node in which the queue was then."""
    version: int
    id: int
    name: str
    """As in an URL; empty: it had none any more."""
    messages: int
    data: bytes

    @classmethod
    def load(cls, boot: str, data: bytes) -> Snapshot:
        """Read it, or raise ProtocolError."""
        if len(data) < _HEAD.size:
            raise ProtocolError(f"a snapshot of {len(data)} bytes")
        version, number, *rest = _HEAD.unpack_from(data)
        length, messages = rest[5], rest[6]
        name = data[_HEAD.size : _HEAD.size + length]
        return cls(boot, version, number, queue_name(name), messages, data)

    @property
    def is_void(self) -> bool:
        """Whether the queue had more in it than is kept."""
        return self.messages == _VOID

    def cut(self) -> Iterator[Message]:
        """Return it in pieces, as messages."""
        for offset in range(0, len(self.data), PIECE):
            yield {
                "boot": self.boot, "id": self.id, "version": self.version, "offset": offset,
                "size": len(self.data),
                "data": wire.put_bytes(self.data[offset : offset + PIECE]),
            }  # fmt: skip


class Snapshots:
    """All that this node has."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._partial: dict[tuple[int, int], bytes] = {}
        """By queue and version."""
        folder.mkdir(mode=0o700, exist_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:016x}"

    def keep(self, boot: str, data: bytes) -> None:
        """Take what a queue of that life of a node is now."""
        new = Snapshot.load(boot, data)
        known = self.find(new.id)
        if known and known.version > new.version:
            return
        fresh = self._path(new.id).with_suffix(".partial")
        fresh.write_bytes(boot.encode() + b"\n" + data)
        fresh.rename(self._path(new.id))

    def take_piece(self, message: Message) -> bool:
        """Take one in pieces; False if those before this one are not here."""
        number = wire.get_int(message, "id", 0, MAX_NUMBER)
        version = wire.get_int(message, "version", 0, MAX_NUMBER)
        size, offset = (wire.get_int(message, word, 0, MAX_KEPT) for word in ("size", "offset"))
        before = self._partial.pop((number, version), b"") if offset else b""
        if len(before) != offset:
            return False
        data = before + wire.get_bytes(message, "data")
        if len(data) < size:
            latest = list(self._partial.items())[1 - MAX_PARTIAL :]
            self._partial = {**dict(latest), (number, version): data}
        else:
            self.keep(wire.get_text(message, "boot"), data)
        return True

    def forget(self, number: int) -> None:
        """Nobody else can have that queue any more."""
        self._path(number).unlink(missing_ok=True)

    def find(self, number: int) -> Snapshot | None:
        """Return what is known of a queue."""
        with contextlib.suppress(OSError, ProtocolError):
            boot, _, data = self._path(number).read_bytes().partition(b"\n")
            return Snapshot.load(boot.decode(), data)
        return None

    def list_all(self) -> list[Snapshot]:
        """Return all."""
        paths = [path for path in self._folder.iterdir() if not path.suffix]
        found = (self.find(int(path.name, 16)) for path in paths)
        return [one for one in found if one]
