"""loadavg, stat and meminfo of the whole cluster."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ssi.common import wire
from ssi.common.errors import ProtocolError, SsiError
from ssi.common.wire import Message
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics
from ssi.node.proc.places import SYSTEM, TABLES
from ssi.node.proc.sysvipc import Sysvipc
from ssi.node.proc.table import Table

logger = logging.getLogger(__name__)

QUESTION = "proc-system"
FRESH_S = 0.2
LAST_S = 5.0
"""From a read of the beginning to that of the end."""

SILENT_S = 2.0

ONE_VALUE = {"Hugepagesize"}
"""What is not more because there are more nodes."""

SUMMED = ("ctxt", "processes", "procs_running", "procs_blocked")


def _numbers(words: Sequence[str], what: str) -> list[int]:
    if not all(word.isascii() and word.isdigit() and len(word) < 22 for word in words):
        raise ProtocolError(f"no numbers in {what}: {' '.join(words):.60}")
    return [int(word) for word in words]


def merge_loadavg(texts: Sequence[str], own: str) -> str:
    """Return the sum of all loads; the last PID is that of `own`."""
    loads = [0.0, 0.0, 0.0]
    counts = [0, 0]
    for text in texts:
        found = re.fullmatch(r"([\d.]+) ([\d.]+) ([\d.]+) (\d+)/(\d+) (\d+)\n", text, re.ASCII)
        if not found:
            raise ProtocolError(f"no loadavg: {text:.60}")
        loads = [load + float(found[i + 1]) for i, load in enumerate(loads)]
        counts = [count + int(found[i + 4]) for i, count in enumerate(counts)]
    last = own.rsplit(maxsplit=1)[-1]
    return f"{' '.join(f'{load:.2f}' for load in loads)} {counts[0]}/{counts[1]} {last}\n"


def merge_stat(texts: Sequence[str], own: str) -> str:
    """Return all processors, numbered on from text to text, and sums; the rest is that of `own`."""
    total: list[int] = []
    processors: list[str] = []
    sums = dict.fromkeys(SUMMED, 0)
    for text in texts:
        for line in text.splitlines():
            name, *words = line.split() or [""]
            if name == "cpu":
                values = _numbers(words, "stat")
                total = [sum(pair) for pair in itertools.zip_longest(total, values, fillvalue=0)]
            elif name.startswith("cpu"):
                _numbers(words, "stat")
                processors.append(f"cpu{len(processors)} {' '.join(words)}")
            elif name in sums:
                sums[name] += _numbers(words[:1], "stat")[0]
    rest = []
    for line in own.splitlines():
        name = line.partition(" ")[0]
        if not name.startswith("cpu"):
            rest.append(f"{name} {sums[name]}" if name in sums else line)
    return "\n".join([f"cpu  {' '.join(map(str, total))}", *processors, *rest, ""])


def _parse_meminfo(text: str) -> Mapping[str, tuple[int, str]]:
    """Return number and unit by name."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        number, _, unit = value.strip().partition(" ")
        found[name] = _numbers([number], "meminfo")[0], unit
    return found


def merge_meminfo(texts: Sequence[str], own: str) -> str:
    """Return the sums of all that `own` has."""
    parsed = [_parse_meminfo(text) for text in texts]
    lines = []
    for name, (number, unit) in _parse_meminfo(own).items():
        amount = sum(each[name][0] for each in parsed if name in each)
        if name in ONE_VALUE:
            amount = number
        lines.append(f"{f'{name}:':<15}{amount:>9} {unit}".rstrip() + "\n")
    return "".join(lines)


MERGE = {"loadavg": merge_loadavg, "stat": merge_stat, "meminfo": merge_meminfo}


def _read_own() -> Mapping[str, str]:
    return {name: Path("/proc", name).read_text() for name in SYSTEM}


async def answer_system(_: Call) -> Message:
    """Tell this node's."""
    return dict(_read_own())


class System:
    """The three files, all of one moment; and those of sysvipc."""

    def __init__(self, table: Table, sysvipc: Sysvipc, ics: Ics) -> None:
        self._table = table
        self._sysvipc = sysvipc
        self._ics = ics
        self._known: dict[int, Mapping[str, str]] = {}
        self._made = 0.0
        self._content: Mapping[str, bytes] = {}
        self._lock = asyncio.Lock()

    async def read(self, name: str, *, fresh: bool) -> bytes:
        """Return the content of one as it is now or was a moment ago; unless `fresh`, as last."""
        if name in TABLES:
            return await self._sysvipc.read(name, fresh=fresh)
        async with self._lock:
            age_s = time.monotonic() - self._made
            if age_s > (FRESH_S if fresh else LAST_S):
                self._content = await self._make()
                self._made = time.monotonic()
        return self._content[name]

    async def _make(self) -> Mapping[str, bytes]:
        others = self._table.others
        await asyncio.gather(*map(self._ask, others))
        own = self._ics.node
        self._known[own] = _read_own()
        nodes = sorted(self._known.keys() & (others | {own}))
        return {
            name: merge(
                [self._known[node][name] for node in nodes], self._known[own][name]
            ).encode()
            for name, merge in MERGE.items()
        }

    async def _ask(self, node: int) -> None:
        try:
            answer = await self._ics.ask(node, QUESTION, within_s=SILENT_S)
            texts = {name: wire.get_text(answer, name) for name in SYSTEM}
            for name, merge in MERGE.items():
                merge([texts[name]], texts[name])
            self._known[node] = texts
        except SsiError as error:
            logger.warning("node%d tells nothing of itself: %s", node, error)
