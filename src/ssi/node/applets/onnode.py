"""onnode, fast: run a command on another node, as if it ran here."""

from __future__ import annotations

import argparse
import errno
import functools
import os
import resource
import signal
from pathlib import Path

from ssi.common import frames, wire
from ssi.common.errors import NodeLost, ProtocolError, SsiError, UsageError
from ssi.common.wire import Message
from ssi.node.applets.arguments import Parser, parse
from ssi.node.cluster import Cluster
from ssi.node.ics.ics import Ics
from ssi.node.load import Loads
from ssi.node.local import LocalServer, Output, Request
from ssi.node.process.attributes import LIMITS
from ssi.node.process.caller import read_caller
from ssi.node.process.descriptors import describe
from ssi.node.process.ghost import Ghost
from ssi.node.process.orders import Hello, Order, Report, pack_order, parse_hello, parse_report
from ssi.node.process.space import ProcessSpace
from ssi.node.runner import NOT_EXECUTABLE, NOT_FOUND, list_request_parts


class NotStarted(SsiError):
    """The command cannot be run there."""

    code = "not-started"
    exit_status = NOT_EXECUTABLE


class Onnode:
    """The command, by both its names."""

    def __init__(self, cluster: Cluster, ics: Ics, space: ProcessSpace, loads: Loads) -> None:
        self._loads = loads
        self._cluster = cluster
        self._ics = ics
        self._asking = space.asking
        self._ghosts = space.ghosts
        self._stand_ins = space.places.stand_ins

    def register(self, server: LocalServer) -> None:
        """Have `server` answer by it."""
        server.serve("onnode", self.run)
        server.serve("fast", self.run)

    async def run(self, request: Request, output: Output) -> int:
        """Have the caller become the ghost of its command."""
        options = await parse(_parser(request.name), request, output)
        if options is None:
            return 0
        command = options.command[1:] if options.command[:1] == ["--"] else options.command
        if not command:
            raise UsageError("no command is given", hint=f"{request.name} --help")
        return await self._run(request, output, options, command)

    async def _run(
        self, request: Request, output: Output, options: argparse.Namespace, command: list[str]
    ) -> int:
        # One that a daemon before this one knew comes with the same request.
        known = self._ghosts.find(request.pid)
        node = known.node if known else await self._choose(options)
        if node == self._cluster.node:
            skipped = len(request.argv) - len(command)
            await output.order(pack_order(Order.HERE, value=skipped))
            return 0
        state = await self._cluster.wait_known()
        if not known and node not in state.view.members:
            raise NotStarted(f"node{node} is not up", hint="`cluster -v` shows who is")
        if not request.cwd:
            raise NotStarted("the current folder is gone", hint="go to another, as with `cd`")
        kind, _, _, data = parse_report(await request.inbox.receive_report())
        if kind != Report.HELLO:
            raise ProtocolError(f"a report of kind {kind} before the first")
        hello = parse_hello(data)
        if hello.keeps:
            # Its command is not to be run again.
            if known:
                await self._ghosts.attend(known, request, output)
            return 0
        ghost = self._ghosts.begin(request.pid, node)
        if ghost.adopted:
            await self._ghosts.attend(ghost, request, output)
            return 0
        try:
            wishes = _describe_caller(request.pid, hello)
            devices = self._stand_ins.devices_of(request.pid)
            wishes.update(id=ghost.id, pinned=options.pin, devices=devices)
            answer = await self._start(ghost, wishes, request, command)
        except BaseException:
            self._ghosts.forget(ghost)
            raise
        if error := wire.get_int(answer, "error", 0, 4095):
            self._ghosts.forget(ghost)
            what = wire.get_text(answer, "what") or command[0]
            await output.error(f"{request.name}: node{node}: {what}: {os.strerror(error)}\n")
            return NOT_FOUND if error == errno.ENOENT and what == command[0] else NOT_EXECUTABLE
        await self._ghosts.attend(ghost, request, output)
        return 0

    async def _choose(self, options: argparse.Namespace) -> int:
        """Return the node that is named, or for `fast` the one with the least to do."""
        node: int = options.node if "node" in options else await self._loads.find_least()
        return node

    async def _start(
        self, ghost: Ghost, wishes: Message, request: Request, command: list[str]
    ) -> Message:
        words = [f"{name}={value}" for name, value in request.environment.items()]
        packed = frames.encode_call(command, words, request.cwd, request.umask)
        while self._asking.is_alive(ghost.node):
            try:
                async with self._ics.call(ghost.node, "body-start", wishes) as stream:
                    for part in list_request_parts(packed):
                        await stream.send(part)
                    return await stream.answer()
            except NodeLost:
                continue  # its daemon: the next one knows what this one had begun
        raise NotStarted(f"node{ghost.node} was lost")


def _describe_caller(pid: int, hello: Hello) -> Message:
    """Return what the body must be like; raises OSError when the caller has ended."""
    caller = read_caller(pid)
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    parent, group, session, tty = (int(fields[index]) for index in (1, 2, 3, 4))
    status = Path(f"/proc/{pid}/status").read_text()
    limits = [value for number in range(LIMITS) for value in resource.prlimit(pid, number)]
    return {
        "pid": pid, "parent": parent, "group": group, "session": session, "tty": tty,
        "uids": list(caller.uids), "gids": list(caller.gids), "groups": list(caller.groups),
        "nice": os.getpriority(os.PRIO_PROCESS, pid), "limits": limits,
        "no_new_privileges": "NoNewPrivs:\t1" in status, "blocked": hello.blocked,
        "ignored": hello.ignored & ~(1 << (signal.SIGKILL - 1)), "death_signal": hello.death_signal,
        "descriptors": [one.dump() for one in describe(pid)],
    }  # fmt: skip


NAMED = "node NODE"
LEAST = "the node with the least to do, which may be this one,"
AS_HERE = (
    "as if it ran here: with this terminal and these descriptors, folder, environment, limits and "
    "rights, the same PID, in this process group and session. Its exit status is CMD's; 127 if "
    "there is no CMD on the node, 126 if it cannot be run there or the node is not up. If the node "
    "is lost, CMD has died of SIGKILL."
)


@functools.cache
def _parser(name: str) -> Parser:
    where = LEAST if name == "fast" else NAMED
    parser = Parser(name, f"Run CMD on {where} {AS_HERE}")
    parser.add_argument("-p", dest="pin", action="store_true", help="it stays on that node")
    if name != "fast":
        parser.add_argument("node", metavar="NODE", type=int, help="the node's number")
    parser.add_argument("command", metavar="CMD", nargs=argparse.REMAINDER, help="what to run")
    return parser
