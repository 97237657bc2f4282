"""Objects of other nodes as they were last seen here, to be made anew when their node is dead.

In RAM, in a file each: a daemon that comes after one that was killed has them, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import struct
from pathlib import Path

from ssi.common.errors import ProtocolError
from ssi.node.ipc.keeper import Kind

FOLDER = Path("/run/ssi/ipc")

_HEAD = struct.Struct("=QIii9I")
_MESSAGE = struct.Struct("=qI")
_VALUE = struct.Struct("=ii")
_UNDO = struct.Struct("=II")
_VOID = 2**32 - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """The beginning of one (struct ipc_snapshot of native/ipckeeper.h)."""

    version: int
    kind: Kind
    id: int
    key: int
    count: int
    undos: int
    data: bytes

    @classmethod
    def load(cls, data: bytes) -> Snapshot:
        """Read it, or raise ProtocolError."""
        if len(data) < _HEAD.size:
            raise ProtocolError(f"a snapshot of {len(data)} bytes")
        version, kind, identifier, key, *rest = _HEAD.unpack_from(data)
        if kind not in {Kind.SEMAPHORES, Kind.QUEUE}:
            raise ProtocolError(f"a snapshot of kind {kind}")
        return cls(version, Kind(kind), identifier, key, rest[5], rest[7], data)

    @property
    def is_void(self) -> bool:
        """Whether the object was too large to be kept."""
        return self.count == _VOID

    def list_undos(self) -> list[tuple[int, int]]:
        """Return owners and processes that have something to be undone."""
        if self.is_void or self.kind is not Kind.SEMAPHORES:
            return []
        first, each = _HEAD.size + self.count * _VALUE.size, _UNDO.size + 4 * self.count
        if len(self.data) < first + self.undos * each:
            raise ProtocolError("a snapshot that is cut off")
        return [_UNDO.unpack_from(self.data, first + n * each) for n in range(self.undos)]


class Snapshots:
    """All that this node has."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, exist_ok=True)

    def _path(self, kind: int, identifier: int) -> Path:
        return self._folder / f"{int(kind)}-{identifier}"

    def keep(self, boot: str, data: bytes) -> None:
        """Take what an object of that life of a node is now."""
        new = Snapshot.load(data)
        path = self._path(new.kind, new.id)
        with contextlib.suppress(OSError, ProtocolError):
            if Snapshot.load(path.read_bytes().partition(b"\n")[2]).version > new.version:
                return
        fresh = path.with_suffix(".partial")
        fresh.write_bytes(boot.encode() + b"\n" + data)
        fresh.rename(path)

    def forget(self, kind: int, identifier: int) -> None:
        """The object has been removed."""
        self._path(kind, identifier).unlink(missing_ok=True)

    def list_of(self, boot: str) -> list[Snapshot]:
        """Return those of one life of a node."""
        found = []
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError, ProtocolError):
                whose, _, data = path.read_bytes().partition(b"\n")
                if whose == boot.encode():
                    found.append(Snapshot.load(data))
        return found
