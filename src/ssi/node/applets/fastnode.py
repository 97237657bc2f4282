"""fastnode: which node has the least to do."""

from __future__ import annotations

import functools
import json

from ssi.node.applets.arguments import Parser, parse
from ssi.node.load import Loads
from ssi.node.local import LocalServer, Output, Request


class Fastnode:
    """The command."""

    def __init__(self, loads: Loads) -> None:
        self._loads = loads

    def register(self, server: LocalServer) -> None:
        """Have `server` answer by it."""
        server.serve("fastnode", self.run)

    async def run(self, request: Request, output: Output) -> int:
        """Print the node's number."""
        words = await parse(_parser(), request, output)
        if words is None:
            return 0
        node = await self._loads.find_least()
        await output.write(json.dumps({"node": node}) + "\n" if words.json else f"{node}\n")
        return 0


@functools.cache
def _parser() -> Parser:
    parser = Parser(
        "fastnode",
        "Print the number of the node with the least to do: the fewest processes that run, now and "
        "over a minute, for each of its processors. Of equals it is this node, then the lowest.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
