"""/proc/sysvipc of the whole cluster: the objects of all nodes, one behind the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import SsiError
from ssi.common.wire import Message
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.proc.places import TABLES

logger = logging.getLogger(__name__)

QUESTION = "ipc-tables"
SILENT_S = 2.0

MEMORY = "sysvipc/shm"
SHMID, CPID, LPID, NATTCH, ATIME, DTIME = 1, 4, 5, 6, 11, 12
WIDTHS = (10, 10, 5, 21, 5, 5, 6, 5, 5, 5, 5, 10, 10, 10, 21, 21)
"""Of the columns of shared memory."""


def read_own() -> Mapping[str, str]:
    """Return this node's, by name."""
    return {name: Path("/proc", name).read_text() for name in TABLES}


async def answer_tables(_: Call) -> Message:
    """Tell this node's."""
    return dict(read_own())


def merge(name: str, texts: list[str]) -> str:
    """Return one table with the rows of all, below the first one's head."""
    head, _, _ = texts[0].partition("\n")
    rows = [row for text in texts for row in text.splitlines()[1:]]
    if name == MEMORY:
        rows = unite(rows)
    return "".join(f"{row}\n" for row in [head, *rows])


def unite(rows: list[str]) -> list[str]:
    """Return them with one for each segment that several nodes have, as its home has it."""
    found: dict[str, list[list[str]]] = {}
    for row in rows:
        fields = row.split()
        found.setdefault(fields[SHMID], []).append(fields)
    return [_unite(same) for same in found.values()]


def _unite(same: list[list[str]]) -> str:
    # Who made it is known at home.
    fields = max(same, key=lambda one: int(one[CPID])).copy()
    fields[NATTCH] = str(sum(int(one[NATTCH]) for one in same))
    used = [max(int(one[ATIME]), int(one[DTIME])) for one in same]
    fields[LPID] = same[used.index(max(used))][LPID]
    for column in (ATIME, DTIME):
        fields[column] = str(max(int(one[column]) for one in same))
    return " ".join(f"{field:>{width}}" for field, width in zip(fields, WIDTHS, strict=True))


class Sysvipc:
    """The three files."""

    def __init__(self, others: Callable[[], Iterable[int]], ics: Ics) -> None:
        self._others = others
        self._ics = ics
        self._content: dict[str, bytes] = {}

    async def read(self, name: str, *, fresh: bool) -> bytes:
        """Return the content of one as it is now; unless `fresh`, as it was read last."""
        if fresh or name not in self._content:
            asked = await asyncio.gather(*map(self._ask, sorted(self._others())))
            texts = [read_own()[name], *(one[name] for one in asked if one)]
            self._content[name] = merge(name, texts).encode()
        return self._content[name]

    async def _ask(self, node: int) -> Mapping[str, str] | None:
        try:
            answer = await self._ics.ask(node, QUESTION, within_s=SILENT_S)
            return {name: wire.get_text(answer, name) for name in TABLES}
        except SsiError as error:
            logger.warning("node%d does not tell its IPC objects: %s", node, error)
            return None
