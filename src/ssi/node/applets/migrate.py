"""migrate: move processes to another node, or say what keeps them."""

from __future__ import annotations

import errno
import functools
from collections.abc import Awaitable, Callable, Sequence

from ssi.common.errors import SsiError, UsageError
from ssi.common.nodes import parse_node
from ssi.node.applets.arguments import Parser, parse
from ssi.node.local import LocalServer, Output, Request
from ssi.node.migration.criu import CannotMove
from ssi.node.migration.departures import Departures
from ssi.node.migration.members import Kind, Members
from ssi.node.migration.obstacles import Obstacles
from ssi.node.process.caller import Caller, read_caller


class Migrate:
    """The command."""

    def __init__(self, departures: Departures, obstacles: Obstacles, members: Members) -> None:
        self._departures = departures
        self._obstacles = obstacles
        self._members = members

    def register(self, server: LocalServer) -> None:
        """Have `server` answer by it."""
        server.serve("migrate", self.run)
        server.serve("api-members", self._tell_members)

    async def run(self, request: Request, output: Output) -> int:
        """Move one process after the other; each that stays is told, and the rest go on."""
        options = await parse(_parser(), request, output)
        if options is None:
            return 0
        caller = read_caller(request.pid)
        words = [options.node, *options.pid] if options.check else options.pid
        numbers = list(map(_parse_pid, words))
        if not numbers:
            raise UsageError("which process?", hint="migrate --help")
        if options.check:
            act = functools.partial(self._check, caller=caller, output=output)
        else:
            act = functools.partial(
                self._move, node=parse_node(options.node), caller=caller, whole=options.whole
            )
        failed = 0
        for number in numbers:
            failed |= await self._do_all(options.kind, number, act, request, output)
        return failed

    async def _do_all(
        self, kind: Kind | None, number: int, act: Callable[[int], Awaitable[int]],
        request: Request, output: Output,
    ) -> int:  # fmt: skip
        """Do it with a process, or with all of a group or session; return 1 if it fails for one."""
        pids: Sequence[int] = [number]
        if kind:
            # Not with the command that asks for it.
            pids = [pid for pid in await self._members.find(kind, number) if pid != request.pid]
        if not pids:
            await output.error(f"migrate: there is no {kind} {number}\n")
        failed = 0 if pids else 1
        for pid in pids:
            try:
                failed |= await act(pid)
            except SsiError as error:
                if kind and isinstance(error, CannotMove) and error.number == errno.ESRCH:
                    continue  # it has ended meanwhile
                failed = 1
                await output.error(f"migrate: {error}\n")
        return failed

    async def _move(self, pid: int, node: int, caller: Caller, *, whole: bool) -> int:
        await self._departures.move(pid, node, caller, whole=whole)
        return 0

    async def _check(self, pid: int, caller: Caller, output: Output) -> int:
        found = await self._obstacles.ask(pid, caller)
        lines = [f"{pid}: {line}\n" for line in found] or [f"{pid} can move\n"]
        await output.write("".join(lines))
        return 1 if found else 0

    async def _tell_members(self, request: Request, output: Output) -> int:
        """Write who is in a group or session, for libraries."""
        if len(request.argv) != 3 or request.argv[1] not in _KINDS:
            raise UsageError("api-members group|session NUMBER")
        kind, number = _KINDS[request.argv[1]], _parse_pid(request.argv[2])
        pids = await self._members.find(kind, number)
        await output.write("".join(f"pid {pid}\n\n" for pid in pids))
        return 0


_KINDS = {"group": Kind.GROUP, "session": Kind.SESSION}


def _parse_pid(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 7 and int(text)):
        raise UsageError(f"{text!r} is no PID")
    return int(text)


@functools.cache
def _parser() -> Parser:
    parser = Parser("migrate", "Move processes to NODE. Each goes on there as if nothing were.")
    parser.usage = "migrate [-w] [-g | -s] NODE PID...\n       migrate --check [-g | -s] PID..."
    parser.add_argument("--check", action="store_true", help="only say what keeps each of them")
    parser.add_argument("-w", "--whole", action="store_true",
                        help="with all its memory before it goes on")  # fmt: skip
    whom = parser.add_mutually_exclusive_group()
    whom.add_argument("-g", "--group", dest="kind", action="store_const", const=Kind.GROUP,
                      help="PID is a process group's number: all that are in it")  # fmt: skip
    whom.add_argument("-s", "--session", dest="kind", action="store_const", const=Kind.SESSION,
                      help="PID is a session's number: all that are in it")  # fmt: skip
    parser.add_argument("node", metavar="NODE", help="the node's number")
    parser.add_argument("pid", metavar="PID", nargs="*", help="of any node's process")
    return parser
