"""where_pid: on which node a process runs."""

from __future__ import annotations

import functools
import json
import re

from ssi.common.errors import SsiError, UsageError
from ssi.node.applets.arguments import Parser, parse
from ssi.node.local import LocalServer, Output, Request
from ssi.node.process.foreign import Foreign


class NoProcess(SsiError):
    """There is none with that PID."""

    code = "no-process"
    exit_status = 1


class ProcessApplets:
    """The command."""

    def __init__(self, foreign: Foreign) -> None:
        self._foreign = foreign

    def register(self, server: LocalServer) -> None:
        """Have `server` answer by it."""
        server.serve("where_pid", self.where)

    async def where(self, request: Request, output: Output) -> int:
        """Print the number of the node on which a process runs."""
        words = await parse(_parser(), request, output)
        if words is None:
            return 0
        if not re.fullmatch("[0-9]{1,7}", words.pid):
            raise UsageError(f"{words.pid!r} is no PID")
        pid = int(words.pid)
        node = await self._foreign.find(pid)
        if node is None:
            raise NoProcess(f"there is no process {pid}")
        await output.write(
            json.dumps({"pid": pid, "node": node}) + "\n" if words.json else f"{node}\n"
        )
        return 0


@functools.cache
def _parser() -> Parser:
    parser = Parser("where_pid", "Print the number of the node on which process PID runs.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("pid", metavar="PID", help="of any process of the cluster")
    return parser
