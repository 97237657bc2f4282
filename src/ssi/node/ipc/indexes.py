"""The calls that go through all objects by an index: MSG_INFO, MSG_STAT and their like.

An index is a place among the objects of all nodes, ordered by identifier, as they were when the
process asked how many there are: one that removes each in turn misses none.
"""

from __future__ import annotations

import struct
from pathlib import Path

from ssi.node.ipc.keeper import Kind
from ssi.node.proc.sysvipc import Sysvipc

MOST = 64
"""Processes whose answers are remembered."""

PAGE = 4096
IDENTIFIER = 1
BYTES, MESSAGES, SEMAPHORES = 3, 4, 3
SIZE, RESIDENT, SWAPPED = 3, 14, 15
"""Columns of the tables."""

TABLES = {
    Kind.QUEUE: "sysvipc/msg",
    Kind.SEMAPHORES: "sysvipc/sem",
    Kind.MEMORY: "sysvipc/shm",
}
SEMAPHORE_LARGEST = 32767
MESSAGE_SEGMENT, MESSAGE_SEGMENTS = 16, 0xFFFF
"""What Linux says of them."""

_MSGINFO = struct.Struct("=7iHxx")
_SEMINFO = struct.Struct("=10i")
_SHM_INFO = struct.Struct("=i4x5Q")


class Indexes:
    """Of the objects of all nodes."""

    def __init__(self, tables: Sysvipc) -> None:
        self._tables = tables
        self._known: dict[tuple[int, Kind], list[int]] = {}
        """Identifiers, by the process that has asked and the kind."""

    async def count(self, kind: Kind, pid: int) -> tuple[int, bytes]:
        """Return the highest index and what MSG_INFO, SEM_INFO or SHM_INFO writes."""
        text = (await self._tables.read(TABLES[kind], fresh=True)).decode()
        rows = sorted(
            ([int(field) for field in row.split()] for row in text.splitlines()[1:]),
            key=lambda row: row[IDENTIFIER],
        )
        # Octal permissions read as decimals: nobody looks at them here.
        self._known.pop((pid, kind), None)
        self._known[pid, kind] = [row[IDENTIFIER] for row in rows]
        while len(self._known) > MOST:
            del self._known[next(iter(self._known))]
        return max(0, len(rows) - 1), _SUMS[kind](rows)

    async def find(self, kind: Kind, pid: int, index: int) -> int | None:
        """Return the identifier of an object, None if there is none of this index."""
        if (pid, kind) not in self._known:
            await self.count(kind, pid)
        known = self._known[pid, kind]
        return known[index] if 0 <= index < len(known) else None


def _limits(name: str) -> list[int]:
    return [int(word) for word in Path("/proc/sys/kernel", name).read_text().split()]


def _sum(rows: list[list[int]], column: int) -> int:
    return sum(row[column] for row in rows)


def _queues(rows: list[list[int]]) -> bytes:
    [most], [bytes_most], [queues_most] = map(_limits, ("msgmax", "msgmnb", "msgmni"))
    return _MSGINFO.pack(
        len(rows), _sum(rows, MESSAGES), most, bytes_most, queues_most,
        MESSAGE_SEGMENT, _sum(rows, BYTES), MESSAGE_SEGMENTS,
    )  # fmt: skip


def _semaphores(rows: list[list[int]]) -> bytes:
    in_set, most, operations, sets = _limits("sem")
    return _SEMINFO.pack(
        most, sets, most, most, in_set, operations, operations,
        len(rows), SEMAPHORE_LARGEST, _sum(rows, SEMAPHORES),
    )  # fmt: skip


def _memory(rows: list[list[int]]) -> bytes:
    pages = [-(-row[SIZE] // PAGE) for row in rows]
    return _SHM_INFO.pack(
        len(rows), sum(pages), _sum(rows, RESIDENT) // PAGE, _sum(rows, SWAPPED) // PAGE, 0, 0
    )


_SUMS = {Kind.QUEUE: _queues, Kind.SEMAPHORES: _semaphores, Kind.MEMORY: _memory}
