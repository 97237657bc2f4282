"""The processes of the other nodes, as these have told of them."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterator

from ssi.common import wire
from ssi.common.errors import SsiError
from ssi.common.wire import Message
from ssi.node.cluster import Cluster
from ssi.node.ics.ics import Ics
from ssi.node.proc.rows import HZ, Row
from ssi.node.process.caller import MAX_PID

logger = logging.getLogger(__name__)

FRESH_S = 0.25
"""What has been asked for so lately is not asked for again."""

SILENT_S = 2.0
"""A listing waits so long for a node that does not answer."""

QUESTION = "processes"


@dataclasses.dataclass(slots=True)
class _Told:
    """What a node has told."""

    life: str = ""
    number: int = 0
    booted: float = 0.0
    rows: dict[int, Row] = dataclasses.field(default_factory=dict)


def _booted() -> float:
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


OnChange = Callable[[Collection[int]], Awaitable[None]]


class Table:
    """All rows of the living nodes but this one."""

    def __init__(self, cluster: Cluster, ics: Ics) -> None:
        self._cluster = cluster
        self._ics = ics
        self._told: dict[int, _Told] = {}
        self._asked = 0.0
        self._asking: asyncio.Task[None] | None = None

    @property
    def others(self) -> frozenset[int]:
        """The living nodes but this one."""
        state = self._cluster.known
        return frozenset(state.view.alive if state else ()) - {self._cluster.node}

    def find(self, pid: int) -> tuple[int, Row] | None:
        """Return the node of a process and what it told, None if no other node has it."""
        for node in self.others:
            if row := self._told[node].rows.get(pid) if node in self._told else None:
                return node, row
        return None

    def __iter__(self) -> Iterator[int]:
        """Yield the PIDs of all of them; of none twice."""
        seen: set[int] = set()
        for node in self.others & self._told.keys():
            rows = self._told[node].rows.keys()
            yield from rows - seen
            seen |= rows

    def shift_of(self, node: int) -> int:
        """Return by how many ticks `node` was booted after this one; negative for before."""
        return round((self._told[node].booted - _booted()) * HZ)

    async def refresh(self, on_change: OnChange) -> None:
        """Know what is true now; `on_change` has taken what differs when this returns."""
        if self._asking is None:
            if time.monotonic() - self._asked < FRESH_S:
                return
            self._asking = asyncio.create_task(self._ask_all(on_change))
            self._asking.add_done_callback(self._end_asking)
        # Who is cancelled must not take the others' answer with him.
        await asyncio.shield(self._asking)

    def _end_asking(self, _: asyncio.Task[None]) -> None:
        self._asking = None

    async def _ask_all(self, on_change: OnChange) -> None:
        changed: set[int] = set()
        for node in self._told.keys() - self.others:
            changed |= self._told.pop(node).rows.keys()
        for found in await asyncio.gather(*map(self._ask, self.others)):
            changed |= set(found)
        self._asked = time.monotonic()
        if changed:
            await on_change(changed)

    async def _ask(self, node: int) -> Collection[int]:
        """Ask one node; return the PIDs of what has changed."""
        told = self._told.get(node, _Told())
        body = {"life": told.life, "since": told.number}
        rows: list[Message] = []
        try:
            async with asyncio.timeout(SILENT_S), self._ics.call(node, QUESTION, body) as stream:
                stream.finish()
                while part := await stream.receive():
                    rows += wire.get_objects(part, "rows")
                answer = await stream.answer()
            return self._take(node, told, rows, answer)
        except (SsiError, TimeoutError) as error:
            logger.warning("node%d tells nothing of its processes: %s", node, error)
            return ()

    def _take(
        self, node: int, told: _Told, parts: list[Message], answer: Message
    ) -> Collection[int]:
        rows = [Row.load(each) for each in [*parts, *wire.get_objects(answer, "rows")]]
        new = {row.pid: row for row in rows}
        gone = set(wire.get_ints(answer, "gone", 1, MAX_PID))
        if wire.get_flag(answer, "whole"):
            gone = told.rows.keys() - new.keys()
        changed = {pid for pid, row in new.items() if told.rows.get(pid) != row} | gone
        kept = {pid: row for pid, row in told.rows.items() if pid not in gone}
        self._told[node] = _Told(
            wire.get_text(answer, "life"), wire.get_int(answer, "number", 0, 2**53),
            wire.get_number(answer, "booted"), kept | new,
        )  # fmt: skip
        return changed
