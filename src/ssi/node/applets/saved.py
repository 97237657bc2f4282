"""checkpoint and restart: a process into a file, and back.

The file is the caller's own: his command opens it (native/checkpoint.c, native/restart.c), as we
say by orders, and tells by reports what came of it.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import struct

from ssi.common.errors import ProtocolError, SsiError, UsageError
from ssi.node.applets.arguments import Parser, parse
from ssi.node.local import LocalServer, Output, Request
from ssi.node.migration import saved as files
from ssi.node.migration.restarts import Restarts
from ssi.node.migration.saved import Source
from ssi.node.migration.saves import Saves, Taken
from ssi.node.process.caller import Caller

PIECE = 2**20
_RESULT = struct.Struct("<I")


class SavedApplets:
    """Both commands."""

    def __init__(self, saves: Saves, restarts: Restarts) -> None:
        self._saves = saves
        self._restarts = restarts

    def register(self, server: LocalServer) -> None:
        """Have `server` answer by them."""
        server.serve("checkpoint", self.checkpoint)
        server.serve("restart", self.restart)

    async def checkpoint(self, request: Request, output: Output) -> int:
        """Save a process into the caller's file."""
        options = await parse(_checkpoint(), request, output)
        if options is None:
            return 0
        pid, caller = _parse_pid(options.pid), _caller(request)
        if options.check:
            found = await self._saves.ask(pid, caller)
            lines = [f"{pid}: {line}\n" for line in found] or [f"{pid} can be saved\n"]
            await output.write("".join(lines))
            return int(bool(found))
        if not options.file:
            raise UsageError("into which file?", hint="checkpoint --help")
        await _order(request, output, f"open {options.file}")
        async with self._saves.take(pid, caller, hold=options.kill) as taken:
            await _write(taken, output)
            await _order(request, output, "keep")
            await taken.end(kill=options.kill)
        return 0

    async def restart(self, request: Request, output: Output) -> int:
        """Have what was saved go on below the caller."""
        options = await parse(_restart(), request, output)
        if options is None:
            return 0

        async def start(pid: int, move: str) -> int:
            await output.order(f"start {pid} {move}".encode())
            return await _hear_result(request)

        await output.order(os.fsencode(f"open {options.file}"))
        source = Source(request.inbox.receive_input)
        try:
            await self._restarts.restart(source, _caller(request), start)
        except SsiError as error:
            await output.error(f"restart: {options.file}: {error}\n")
            if error.hint:
                await output.error(f"restart: hint: {error.hint}\n")
            return error.exit_status
        return 0


async def _write(taken: Taken, output: Output) -> None:
    """Write all of a process to the caller."""
    key = await asyncio.to_thread(files.read_key)
    images = await asyncio.to_thread(files.digest_images, taken.folder)
    await output.write(files.render_head(taken.saved.with_images(images), key))
    for image in images:
        with (taken.folder / image.name).open("rb") as file:
            while data := file.read(PIECE):
                await output.write(data)


async def _order(request: Request, output: Output, words: str) -> None:
    """Have the caller do something with his file; he says himself why if he cannot."""
    await output.order(os.fsencode(words))
    if failure := await _hear_result(request):
        raise SsiError(f"{words}: {os.strerror(failure)}")


async def _hear_result(request: Request) -> int:
    report = await request.inbox.receive_report()
    if len(report) != _RESULT.size:
        raise ProtocolError(f"a report of {len(report)} bytes")
    failure: int = _RESULT.unpack(report)[0]
    return failure if failure in errno.errorcode else bool(failure) * errno.EIO


def _caller(request: Request) -> Caller:
    """Return who asks, as he was when he did."""
    return Caller(request.pid, (request.uid,) * 3, (request.gid,) * 3, request.groups)


def _parse_pid(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 7 and int(text)):
        raise UsageError(f"{text!r} is no PID")
    return int(text)


@functools.cache
def _checkpoint() -> Parser:
    parser = Parser(
        "checkpoint",
        "Save a process into FILE, with its memory, threads and descriptors, for `restart` to have "
        "it go on from there. It goes on here, too. FILE has its name only when it is complete.",
    )
    parser.usage = "checkpoint [-k] PID FILE\n       checkpoint --check PID"
    parser.add_argument("-k", "--kill", action="store_true", help="end it when it is saved")
    parser.add_argument("--check", action="store_true", help="only say what keeps it")
    parser.add_argument("pid", metavar="PID", help="of any node's process")
    parser.add_argument("file", metavar="FILE", nargs="?", help="on the node of this command")
    return parser


@functools.cache
def _restart() -> Parser:
    parser = Parser(
        "restart",
        "Have a process go on that was saved by `checkpoint`, on this node, with its PID, as a "
        "child of this command: what was its terminal is this one now. Ends as the process does.",
    )
    parser.add_argument("file", metavar="FILE", help="as `checkpoint` has written it")
    return parser
