"""onall: runs a command on all nodes that are up, as the caller."""

from __future__ import annotations

import argparse
import asyncio
import functools
import re
from collections.abc import Iterable, Sequence

from ssi.common import frames
from ssi.common.errors import NodeLost, SsiError, UsageError
from ssi.common.nodes import parse_nodes
from ssi.common.streams import Credit
from ssi.common.wire import Message, get_bytes, get_int, put_bytes
from ssi.node.applets.arguments import Parser, parse
from ssi.node.applets.cluster import Cluster
from ssi.node.applets.gathered import FAILED, Folded, Json, Live, Outcome, Reader
from ssi.node.ics.ics import Ics, Stream
from ssi.node.local import CallerGone, LocalServer, Output, Request
from ssi.node.runner import NAME, STDIN_WINDOW, list_request_parts

OUTPUTS = ("stdout", "stderr")
_ENOUGH = 2**62

_PLAIN = re.compile(r"[\w@%+:,./-]*", re.ASCII)
"""A word that means nothing to a shell."""


class _Run:
    """The command on one node."""

    def __init__(self, node: int, reader: Reader) -> None:
        self.node = node
        self.outcome = Outcome(FAILED, f"node{node}: it did not run")
        self._reader = reader
        self._credit = Credit(STDIN_WINDOW)
        self._stream: Stream | None = None
        self._opened = asyncio.Event()

    async def follow(self, ics: Ics, body: Message, request: bytes) -> None:
        """Run it to its end."""
        try:
            async with ics.call(self.node, NAME, body) as stream:
                for part in list_request_parts(request):
                    await stream.send(part)
                self._stream = stream
                self._opened.set()
                while (given := await stream.receive()) is not None:
                    await self._take(given)
                status = get_int(await stream.answer(), "status", 0, 255)
            self.outcome = Outcome(status)
        except NodeLost as error:
            self.outcome = Outcome(FAILED, str(error))
        except SsiError as error:
            self.outcome = Outcome(FAILED, f"node{self.node}: {error}")
        finally:
            self._opened.set()
            self._credit.add(_ENOUGH)  # nobody need wait for it

    async def _take(self, part: Message) -> None:
        if "used" in part:
            self._credit.add(get_int(part, "used", 0, STDIN_WINDOW))
        for name in OUTPUTS:
            if name in part:
                await self._reader.take(self.node, name, get_bytes(part, name))

    async def send(self, part: Message, *, size: int = 0) -> None:
        """Send it standard input of `size` bytes, or a signal."""
        await self._opened.wait()
        await self._credit.take(size)
        if self._stream:
            await self._stream.send(part)


async def _relay_signals(request: Request, runs: Sequence[_Run]) -> None:
    while True:
        signal = await request.inbox.receive_signal()
        await _send_all(runs, {"signal": signal.number})


async def _relay_input(request: Request, runs: Sequence[_Run]) -> None:
    data = b"-"
    while data:
        data = await request.inbox.receive_input()
        await _send_all(runs, {"stdin": put_bytes(data)}, size=len(data))


async def _send_all(runs: Iterable[_Run], part: Message, *, size: int = 0) -> None:
    await asyncio.gather(*(run.send(part, size=size) for run in runs))


def make_command(words: Sequence[str]) -> list[str]:
    """Return what is run: the words, or a shell for a single one that only a shell understands."""
    if words[:1] == ["--"]:
        words = words[1:]
    if not words:
        raise UsageError("no command is given", hint="onall --help")
    if len(words) == 1 and not _PLAIN.fullmatch(words[0]):
        return ["/bin/sh", "-c", words[0]]
    return list(words)


class Onall:
    """The command."""

    def __init__(self, ics: Ics, cluster: Cluster) -> None:
        self._ics = ics
        self._cluster = cluster

    def register(self, server: LocalServer) -> None:
        """Have `server` answer by it."""
        server.serve("onall", self.run)

    async def run(self, request: Request, output: Output) -> int:
        """Run the command everywhere; return the largest status."""
        options = await parse(_parser(), request, output)
        if options is None:
            return 0
        argv = make_command(options.command)
        if not request.cwd:
            raise SsiError("the current folder is gone", hint="go to another, as with `cd`")
        nodes = sorted(parse_nodes(options.nodes) if options.nodes else self._cluster.members)
        reader = _choose(options, output)
        runs = [_Run(node, reader) for node in nodes]
        words = [f"{name}={value}" for name, value in request.environment.items()]
        packed = frames.encode_call(argv, words, request.cwd, request.umask)
        body: Message = {"uid": request.uid, "gid": request.gid, "groups": list(request.groups)}
        try:
            async with asyncio.TaskGroup() as group:
                relaying = [group.create_task(relay(request, runs))
                            for relay in (_relay_signals, _relay_input)]  # fmt: skip
                following = [group.create_task(run.follow(self._ics, body, packed)) for run in runs]
                await asyncio.wait(following)
                for task in relaying:
                    task.cancel()
        except* CallerGone as gone:
            raise CallerGone from gone
        await reader.end({run.node: run.outcome for run in runs})
        return max((run.outcome.status for run in runs), default=0)


def _choose(options: argparse.Namespace, output: Output) -> Reader:
    if options.json:
        return Json(output)
    return Live(output) if options.live else Folded(output)


@functools.cache
def _parser() -> Parser:
    parser = Parser(
        "onall",
        "Run CMD on all nodes that are up, as you are: user, groups, folder, umask, environment. "
        "What nodes write alike is shown once, when all have ended; errors at once. The exit "
        "status is the largest; 255 for a node where CMD did not run or that was lost. Standard "
        "input goes to every node: to keep it, give </dev/null. CMD's words are given to the "
        "program as they are; a single word that only a shell understands is run by /bin/sh.",
    )
    parser.add_argument("-n", dest="nodes", metavar="NODES", help="only on these, as 1-3,7")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--live", action="store_true", help="show each line as it comes")
    shown.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("command", metavar="CMD", nargs=argparse.REMAINDER, help="what to run")
    return parser
