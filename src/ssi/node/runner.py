"""Commands that users of any node run here, as themselves (`onall`)."""

from __future__ import annotations

import asyncio
import signal

from ssi.common import frames
from ssi.common.errors import ProtocolError, SsiError
from ssi.common.wire import CHUNK, Message, get_bytes, get_int, get_ints, put_bytes
from ssi.node.command import Command, start_in_userland
from ssi.node.ics.ics import Call, Ics
from ssi.node.launcher import Launcher, Program
from ssi.node.root import USERLAND, is_mounted

NAME = "run"
MAX_ID = 2**32 - 2
NOT_EXECUTABLE, NOT_FOUND = 126, 127  # as a shell has it
MOST = 100
"""Commands at a time: each takes half a dozen of the daemon's descriptors."""

STDIN_WINDOW = frames.MAX_FRAME
"""Bytes of standard input that may be under way before the command has taken them."""


def list_request_parts(request: bytes) -> list[Message]:
    """Return the parts in which a request goes: it may be longer than a message."""
    starts = range(0, len(request), CHUNK)
    return [
        *({"request": put_bytes(request[start : start + CHUNK])} for start in starts),
        {"request": ""},
    ]


async def receive_request(call: Call) -> frames.Call:
    """Return the request that comes in parts, or raise ProtocolError."""
    request = b""
    while True:
        part = await call.receive()
        if part is None:
            raise ProtocolError("the request has no end")
        data = get_bytes(part, "request")
        if not data:
            return frames.parse_call(request[frames.LENGTH.size :])
        request += data
        if len(request) > frames.MAX_REQUEST + frames.LENGTH.size:
            raise ProtocolError(f"a request of over {frames.MAX_REQUEST} bytes")


class Runner:
    """Runs them."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._running = 0

    def register(self, ics: Ics) -> None:
        """Have other nodes ask for it."""
        ics.serve(NAME, self.run)

    async def run(self, call: Call) -> Message:
        """Run one command to its end; answer its status. Cancelled, it hangs up on it."""
        if not is_mounted(USERLAND):
            raise SsiError("the root is not mounted yet")
        uid, gid = (get_int(call.body, key, 0, MAX_ID) for key in ("uid", "gid"))
        groups = get_ints(call.body, "groups", 0, MAX_ID)
        request = await receive_request(call)
        program = Program(
            request.argv, request.environment, request.cwd, uid, gid, groups, request.umask
        )
        self._running += 1
        try:
            return {"status": await self._run(call, program)}
        finally:
            self._running -= 1

    async def _run(self, call: Call, program: Program) -> int:
        async def send(name: str, data: bytes) -> None:
            await call.send({name: put_bytes(data)})

        async def tell_used(count: int) -> None:
            await call.send({"used": count})

        command = Command(send, tell_used)
        hearing = asyncio.create_task(_hear(call, command))
        try:
            return await command.run(start_in_userland(self._launcher, program))
        except OSError as error:
            await send("stderr", f"{error.filename}: {error.strerror}\n".encode())
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        finally:
            hearing.cancel()


async def _hear(call: Call, command: Command) -> None:
    """Pass on input and signals."""
    while (part := await call.receive()) is not None:
        if "signal" in part:
            command.kill(get_int(part, "signal", 1, signal.NSIG - 1))
        else:
            command.feed(get_bytes(part, "stdin"))
