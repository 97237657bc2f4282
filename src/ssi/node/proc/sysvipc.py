"""/proc/sysvipc of the whole cluster: the objects of all nodes, one behind the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import SsiError
from ssi.common.wire import Message
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.proc.places import TABLES
from ssi.node.proc.table import Table

logger = logging.getLogger(__name__)

QUESTION = "ipc-tables"
SILENT_S = 2.0


def read_own() -> Mapping[str, str]:
    """Return this node's, by name."""
    return {name: Path("/proc", name).read_text() for name in TABLES}


async def answer_tables(_: Call) -> Message:
    """Tell this node's."""
    return dict(read_own())


def merge(texts: list[str]) -> str:
    """Return one table with the rows of all, below the first one's head."""
    head, _, _ = texts[0].partition("\n")
    return head + "\n" + "".join(text.partition("\n")[2] for text in texts)


class Sysvipc:
    """The three files."""

    def __init__(self, table: Table, ics: Ics) -> None:
        self._table = table
        self._ics = ics
        self._content: dict[str, bytes] = {}

    async def read(self, name: str, *, fresh: bool) -> bytes:
        """Return the content of one as it is now; unless `fresh`, as it was read last."""
        if fresh or name not in self._content:
            asked = await asyncio.gather(*map(self._ask, sorted(self._table.others)))
            texts = [read_own()[name], *(one[name] for one in asked if one)]
            self._content[name] = merge(texts).encode()
        return self._content[name]

    async def _ask(self, node: int) -> Mapping[str, str] | None:
        try:
            answer = await self._ics.ask(node, QUESTION, within_s=SILENT_S)
            return {name: wire.get_text(answer, name) for name in TABLES}
        except SsiError as error:
            logger.warning("node%d does not tell its IPC objects: %s", node, error)
            return None
