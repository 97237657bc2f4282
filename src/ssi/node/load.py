"""How much each node has to do, and which has the least."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import SsiError
from ssi.common.wire import Message
from ssi.node.cluster import Cluster
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.smallfiles import read_text

SOURCE = Path("/proc/loadavg")
WITHIN_S = 1.0
"""A node that does not answer by then has better things to do."""

MAX_RUNNING = 2**22
MAX_PROCESSORS = 2**16


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """Of one node."""

    running: int
    """Processes that run or could, now."""
    average: float
    """Their number, averaged over a minute."""
    processors: int

    @property
    def weight(self) -> float:
        """What is compared. Nodes that differ by less than a tenth are alike."""
        return round((self.running + self.average) / self.processors, 1)

    def dump(self) -> Message:
        """Return it as a message."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, message: Message) -> Load:
        """Read it from a message, or raise ProtocolError."""
        return cls(
            wire.get_int(message, "running", 0, MAX_RUNNING),
            max(0.0, wire.get_number(message, "average")),
            wire.get_int(message, "processors", 1, MAX_PROCESSORS),
        )


def parse_load(text: str, processors: int) -> Load:
    """Return the load that /proc/loadavg tells a process, which itself does not count."""
    words = text.split()
    return Load(max(0, int(words[3].partition("/")[0]) - 1), float(words[0]), processors)


def choose_least(loads: Iterable[tuple[int, Load]], own: int) -> int:
    """Return the node with the least to do: of equals `own`, then the lowest; `own` of none."""
    ranked = [(load.weight, node != own, node) for node, load in loads]
    return min(ranked)[2] if ranked else own


class Loads:
    """Of all nodes: this one tells its own, and asks for the others'."""

    def __init__(self, cluster: Cluster, ics: Ics) -> None:
        self._cluster = cluster
        self._ics = ics
        ics.serve("load", self._answer)

    async def _answer(self, _: Call) -> Message:
        return parse_load(read_text(SOURCE), os.cpu_count() or 1).dump()

    async def find_least(self) -> int:
        """Return the member with the least to do, of those that answer in time."""
        state = await self._cluster.wait_known()
        answers = await asyncio.gather(*map(self._ask, state.view.members))
        return choose_least((answer for answer in answers if answer), self._cluster.node)

    async def _ask(self, node: int) -> tuple[int, Load] | None:
        try:
            async with asyncio.timeout(WITHIN_S):
                answer = await self._ics.ask(node, "load", within_s=WITHIN_S)
            return node, Load.load(answer)
        except (TimeoutError, SsiError):
            return None
