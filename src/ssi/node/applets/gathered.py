"""What many nodes write, for one reader: folded, line by line, or as JSON."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from typing import Protocol

from ssi.common.nodes import fold_nodes
from ssi.node.local import Output

NODE_MOST = 1024 * 1024
ALL_MOST = 8 * NODE_MOST
"""Bytes that are kept, of one node and of all: this is a node's memory."""

LONGEST_LINE = 16 * 1024
"""A longer one is broken."""

FAILED = 255
"""The status of a node where the command did not come to its end."""


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """How the command ended on a node; `trouble` is why it did not."""

    status: int
    trouble: str = ""


class Reader(Protocol):
    """What is done with the output."""

    async def take(self, node: int, name: str, data: bytes) -> None:
        """Take bytes that `node` has written to the output called `name`."""

    async def end(self, outcomes: Mapping[int, Outcome]) -> None:
        """The command has ended on all nodes."""


class Lines:
    """Bytes that become lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that are complete now, each with its end."""
        *lines, rest = (self._rest + data).split(b"\n")
        if len(rest) >= LONGEST_LINE:
            lines.append(rest)
            rest = b""
        self._rest = rest
        return [line + b"\n" for line in lines]

    def end(self) -> list[bytes]:
        """Return the last line, if it has no end of its own."""
        rest, self._rest = self._rest, b""
        return [rest + b"\n"] if rest else []


class Live:
    """Each line as it comes, with its node in front."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._lines: dict[tuple[int, str], Lines] = {}
        self._writing = asyncio.Lock()

    async def take(self, node: int, name: str, data: bytes) -> None:
        """Write the lines that are complete."""
        lines = self._lines.setdefault((node, name), Lines())
        await self._write(node, name, lines.feed(data))

    async def end(self, outcomes: Mapping[int, Outcome]) -> None:
        """Write what is left, and how it ended."""
        for (node, name), lines in sorted(self._lines.items()):
            await self._write(node, name, lines.end())
        await self._output.error(render_outcomes(outcomes))

    async def _write(self, node: int, name: str, lines: list[bytes]) -> None:
        text = b"".join(b"node%d: %b" % (node, line) for line in lines)
        async with self._writing:  # what is long goes in pieces, and another's would come between
            await (self._output.error if name == "stderr" else self._output.write)(text)


class Folded:
    """At the end, once for all nodes that wrote the same; errors as they come."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._live = Live(output)
        self._kept: dict[int, bytearray] = {}
        self._too_much: set[int] = set()

    async def take(self, node: int, name: str, data: bytes) -> None:
        """Keep it, or write it if it is too much."""
        if name == "stderr" or node in self._too_much:
            await self._live.take(node, name, data)
            return
        kept = self._kept.setdefault(node, bytearray())
        kept += data
        if len(kept) > NODE_MOST or sum(map(len, self._kept.values())) > ALL_MOST:
            del self._kept[node]
            self._too_much.add(node)
            note = f"onall: node{node} writes too much to fold: it is shown as it comes\n"
            await self._output.error(note)
            await self._live.take(node, name, bytes(kept))

    async def end(self, outcomes: Mapping[int, Outcome]) -> None:
        """Write what was kept."""
        for nodes, text in fold(self._kept):
            await self._output.write(f"{nodes}:\n".encode() + text)
        await self._live.end(outcomes)


class Json:
    """At the end, a list with an object for each node."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._kept: dict[tuple[int, str], bytearray] = {}
        self._size = 0
        self._cut: set[int] = set()

    async def take(self, node: int, name: str, data: bytes) -> None:
        """Keep it as long as there is room."""
        kept = self._kept.setdefault((node, name), bytearray())
        room = max(0, min(NODE_MOST - len(kept), ALL_MOST - self._size))
        if len(data) > room:
            self._cut.add(node)
        kept += data[:room]
        self._size += min(len(data), room)

    async def end(self, outcomes: Mapping[int, Outcome]) -> None:
        """Write all."""
        rows = [
            {
                "node": node, "status": outcome.status, "error": outcome.trouble or None,
                **{name: self._text(node, name) for name in ("stdout", "stderr")},
                "truncated": node in self._cut,
            }
            for node, outcome in sorted(outcomes.items())
        ]  # fmt: skip
        await self._output.write(json.dumps(rows, indent=2) + "\n")

    def _text(self, node: int, name: str) -> str:
        return self._kept.get((node, name), b"").decode(errors="replace")


def fold(texts: Mapping[int, bytes | bytearray]) -> list[tuple[str, bytes]]:
    """Return the different texts, each with the nodes it is of and a line's end; not empty ones."""
    nodes: dict[bytes, list[int]] = {}
    for node, text in sorted(texts.items()):
        if text:
            nodes.setdefault(bytes(text), []).append(node)
    return [
        (name_nodes(group), text if text.endswith(b"\n") else text + b"\n")
        for text, group in nodes.items()
    ]


def name_nodes(nodes: list[int]) -> str:
    """Return `nodes` as ``node1-3,7``."""
    return f"node{fold_nodes(nodes)}"


def render_outcomes(outcomes: Mapping[int, Outcome]) -> str:
    """Return lines about those that did not end well."""
    nodes: dict[int, list[int]] = {}
    lines = []
    for node, outcome in sorted(outcomes.items()):
        if outcome.trouble:
            lines.append(f"onall: {outcome.trouble}\n")
        elif outcome.status:
            nodes.setdefault(outcome.status, []).append(node)
    lines += [
        f"onall: {name_nodes(group)}: exit status {status}\n" for status, group in nodes.items()
    ]
    return "".join(lines)
