"""where_pid: on which node a process runs; api-processes: which are on this one."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re

from ssi.common import wire
from ssi.common.errors import SsiError, UsageError
from ssi.node.applets.arguments import Parser, parse
from ssi.node.launcher import Launcher
from ssi.node.local import LocalServer, Output, Request
from ssi.node.process.foreign import Foreign
from ssi.node.process.places import Places
from ssi.node.process.table import list_rows


class NoProcess(SsiError):
    """There is none with that PID."""

    code = "no-process"
    exit_status = 1


class ProcessApplets:
    """Both."""

    def __init__(self, foreign: Foreign, places: Places, launcher: Launcher) -> None:
        self._foreign = foreign
        self._places = places
        self._launcher = launcher

    def register(self, server: LocalServer) -> None:
        """Have `server` answer by it."""
        server.serve("where_pid", self.where)
        server.serve("api-processes", self.list_here)

    async def list_here(self, request: Request, output: Output) -> int:
        """Print this node's processes, an object a line; not the one that asks.

        Without --all, nor what this daemon has in the userland for itself: the launcher, whose
        parent may have been an earlier one, and what writes its log.
        """
        everything = request.argv[1:] == ("--all",)

        def is_hidden(pid: int) -> bool:
            return pid == request.pid or self._places.is_placeholder(pid)

        for row in list_rows(is_hidden, everything=everything):
            if everything or (row.pid != self._launcher.pid and row.ppid != os.getpid()):
                await output.write(wire.encode(dataclasses.asdict(row)))
        return 0

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
