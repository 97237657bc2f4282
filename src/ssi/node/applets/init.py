"""shutdown, poweroff, halt, reboot, telinit, runlevel: what a person tells the cluster's init."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import json
import re
import time

from ssi.common.errors import SsiError, TimedOut, UsageError
from ssi.common.nodes import parse_node
from ssi.node.applets.arguments import Parser, parse
from ssi.node.applets.cluster import Denied
from ssi.node.cluster import Cluster
from ssi.node.init.inittab import FILE, propose_inittab, read_inittab
from ssi.node.local import LocalServer, Output, Request
from ssi.node.state.init import Phase
from ssi.node.state.inittab import LEVELS
from ssi.node.state.view import NodeState, View

WITHIN_S = 10.0
LEAVE_S = 120.0
MAX_TEXT = 1000
MAX_MINUTES = 60 * 24 * 365

LEVEL_MEANS = {"0": "poweroff", "6": "reboot"}


def parse_time(text: str, now: dt.datetime) -> float:
    """Return the Unix time meant by ``now``, ``+MINUTES`` or ``HH:MM``, or raise UsageError."""
    if text == "now":
        return now.timestamp()
    if (found := re.fullmatch(r"\+?(\d{1,6})", text)) and int(found[1]) <= MAX_MINUTES:
        return now.timestamp() + 60 * int(found[1])
    if (found := re.fullmatch(r"(\d{1,2}):(\d\d)", text)) and int(found[1]) < 24:
        hour, minute = int(found[1]), int(found[2])
        if minute < 60:
            then = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
            if then <= now:
                then += dt.timedelta(days=1)
            return then.timestamp()
    raise UsageError(f"{text!r} is no time", hint="now, +MINUTES or HH:MM")


def _check_root(request: Request, what: str) -> None:
    if request.uid != 0:
        raise Denied(f"only root may {what}")


class InitApplets:
    """The commands."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def register(self, server: LocalServer) -> None:
        """Have `server` answer by these."""
        server.serve("shutdown", self.shutdown)
        for name in ("poweroff", "halt", "reboot"):
            server.serve(name, self.go_down)
        server.serve("clusternode_shutdown", self.shut_node_down)
        server.serve("telinit", self.telinit)
        server.serve("runlevel", self.runlevel)

    async def shutdown(self, request: Request, output: Output) -> int:
        """Plan the shutdown of the whole cluster, or cancel it."""
        words = await parse(_shutdown_parser(), request, output)
        if words is None:
            return 0
        _check_root(request, "shut the cluster down")
        if words.cancel:
            await self._commit("cancel")
            return 0
        now = dt.datetime.now().astimezone()
        moment = parse_time(words.time, now)
        await self._plan(request, words.how, moment, " ".join(words.message))
        if words.time != "now":
            then = dt.datetime.fromtimestamp(moment).astimezone()
            await output.write(
                f"The cluster goes down at {then:%Y-%m-%d %H:%M:%S %Z}; `shutdown -c` cancels it.\n"
            )
        return 0

    async def go_down(self, request: Request, output: Output) -> int:
        """Take the whole cluster down now."""
        words = await parse(_now_parser(request.name), request, output)
        if words is None:
            return 0
        _check_root(request, "shut the cluster down")
        await self._plan(request, words.how or request.name, time.time(), "")
        return 0

    async def _plan(self, request: Request, how: str, moment: float, text: str) -> None:
        by = f"user {request.uid} on node{self._cluster.node}"
        await self._commit(
            "shutdown", how=how, time=moment, by=by, text=text[:MAX_TEXT],
            phase=Phase.PLANNED.value,
        )  # fmt: skip

    async def shut_node_down(self, request: Request, output: Output) -> int:
        """Have one node leave in order; return when it has."""
        words = await parse(_node_parser(), request, output)
        if words is None:
            return 0
        _check_root(request, "shut a node down")
        node = parse_node(words.node)
        view = self._view()
        if view.state_of(node) is not NodeState.UP:
            raise SsiError(f"node{node} is {view.state_of(node)}, not UP")
        if view.alive == {node}:
            raise SsiError(
                f"node{node} is the last one", hint="`poweroff` takes the whole cluster down"
            )
        cause = f"clusternode_shutdown by user {request.uid} on node{self._cluster.node}"
        await self._cluster.commit_state(node, NodeState.SHUTDOWN, cause, within_s=WITHIN_S)
        try:
            async with asyncio.timeout(LEAVE_S):
                await self._cluster.changes.wait_for(lambda: node not in self._view().alive)
        except TimeoutError as error:
            raise TimedOut(
                f"node{node} is {self._view().state_of(node)} after {LEAVE_S:.0f} s",
                hint="its log says what it waits for",
            ) from error
        return 0

    def _view(self) -> View:
        return self._cluster.known.view if self._cluster.known else View()

    async def telinit(self, request: Request, output: Output) -> int:
        """Change the runlevel, or read inittab.ssi again."""
        words = await parse(_telinit_parser(), request, output)
        if words is None:
            return 0
        _check_root(request, "speak to init")
        level = words.level.upper()
        if level == "Q":
            inittab = await read_inittab()
            for fault in inittab.faults:
                await output.error(f"/{FILE}: {fault}\n")
            propose_inittab(self._cluster, inittab)
            return 1 if inittab.faults else 0
        if level in LEVEL_MEANS:
            await self._plan(request, LEVEL_MEANS[level], time.time(), "")
        elif level in LEVELS:
            await self._commit("level", level=level)
        else:
            raise UsageError(f"{words.level!r} is no runlevel", hint="0 to 6, S, or q")
        return 0

    async def runlevel(self, request: Request, output: Output) -> int:
        """Print the previous and the current runlevel."""
        words = await parse(_runlevel_parser(), request, output)
        if words is None:
            return 0
        init = self._cluster.known.init if self._cluster.known else None
        if init is None or not init.level:
            raise SsiError("unknown: the cluster's init has not read inittab.ssi yet")
        previous = init.previous or "N"
        if words.json:
            await output.write(json.dumps({"previous": previous, "level": init.level}) + "\n")
        else:
            await output.write(f"{previous} {init.level}\n")
        return 0

    async def _commit(self, operation: str, **fields: object) -> None:
        await self._cluster.commit("init", operation, within_s=WITHIN_S, **fields)


# Made once: that takes a node longer than all the rest of an answer.
@functools.cache
def _shutdown_parser() -> Parser:
    parser = Parser("shutdown", "Take the whole cluster down; for root.")
    how = parser.add_mutually_exclusive_group()
    for flags, value, text in (
        (("-P", "-h", "--poweroff"), "poweroff", "switch all nodes off (the default)"),
        (("-H", "--halt"), "halt", "the same: a virtual node that halts is gone"),
        (("-r", "--reboot"), "reboot", "start all nodes again"),
    ):
        how.add_argument(
            *flags, dest="how", action="store_const", const=value, default="poweroff", help=text
        )
    parser.add_argument("-c", dest="cancel", action="store_true", help="cancel what is planned")
    parser.add_argument(
        "time", metavar="TIME", nargs="?", default="+1",
        help="now, +MINUTES or HH:MM (default +1)",
    )  # fmt: skip
    parser.add_argument("message", metavar="MESSAGE", nargs="*", help="what users are told")
    return parser


@functools.cache
def _now_parser(name: str) -> Parser:
    parser = Parser(name, "Take the whole cluster down now, in order; for root.")
    for flags, how in ((("-p", "--poweroff"), "poweroff"), (("--halt",), "halt"),
                       (("--reboot",), "reboot")):  # fmt: skip
        parser.add_argument(*flags, dest="how", action="store_const", const=how, help=f"as `{how}`")
    return parser


@functools.cache
def _node_parser() -> Parser:
    parser = Parser("clusternode_shutdown", "Have one node leave in order; for root.")
    parser.add_argument("node", metavar="NODE", help="number of the node")
    return parser


@functools.cache
def _telinit_parser() -> Parser:
    parser = Parser("telinit", "Tell the cluster's init what to do; for root.")
    parser.add_argument(
        "level", metavar="LEVEL",
        help="0 (poweroff), 1 to 5, 6 (reboot), S; or q: read /etc/inittab.ssi again",
    )  # fmt: skip
    return parser


@functools.cache
def _runlevel_parser() -> Parser:
    parser = Parser("runlevel", "Print the previous (N: none) and the current runlevel.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
