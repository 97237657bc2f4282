"""The socket on which CRIU's plugin waits for our word (native/criu/plugin.c).

It asks again what a daemon before this one has not answered, so each question may come twice.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from ssi.common.errors import ProtocolError
from ssi.node.accepting import accept, attend
from ssi.node.peer import read_peer
from ssi.node.waiting import close_by_thread

logger = logging.getLogger(__name__)

SOCKET = Path("/run/ssi/public/move.sock")
BACKLOG = 64

_REQUEST = struct.Struct("=Ii32s")
_ANSWER = struct.Struct("=III")


class Question(enum.IntEnum):
    """What the plugin asks."""

    DUMPED = 1
    FILE = 2
    READY = 3
    DONE = 4
    HOME = 5
    HELD = 6
    CRIU = 7
    LOCK = 8
    BEGIN = 9
    BACK = 10
    KEPT = 11


class Verdict(enum.IntEnum):
    """What it is told."""

    GO_ON = 1
    KILL = 2
    GHOST = 3
    REFUSED = 4
    HOLD = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """To one question."""

    verdict: Verdict
    fd: int = -1
    """A descriptor of ours; it is closed when it has been sent."""
    argv: Sequence[str] = ()
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Of a program that it becomes: arguments and environment."""

    def pack(self) -> bytes:
        """Return the packet."""
        words = [*self.argv, *(f"{name}={value}" for name, value in self.variables.items())]
        packed = b"".join(os.fsencode(word) + b"\0" for word in words)
        return _ANSWER.pack(self.verdict, len(words), len(self.variables)) + packed


Asked = Callable[[Question, int, int], Awaitable[Answer]]
"""Answers a question about one move: given its number, and the PID of who asks."""

_UNKNOWN = {
    Question.DUMPED: Verdict.GO_ON, Question.FILE: Verdict.REFUSED, Question.READY: Verdict.KILL,
    Question.DONE: Verdict.GO_ON, Question.HOME: Verdict.REFUSED,
    Question.HELD: Verdict.GO_ON, Question.CRIU: Verdict.REFUSED,
    Question.LOCK: Verdict.REFUSED, Question.BEGIN: Verdict.KILL,
    Question.BACK: Verdict.REFUSED, Question.KEPT: Verdict.REFUSED,
}  # fmt: skip
"""Of a move that nobody knows: the process stays where it was."""


def parse_request(data: bytes) -> tuple[Question, int, str]:
    """Return question, number and move, or raise ProtocolError."""
    if len(data) != _REQUEST.size:
        raise ProtocolError(f"a question of {len(data)} bytes")
    question, number, move = _REQUEST.unpack(data)
    try:
        return Question(question), number, move.rstrip(b"\0").decode("ascii")
    except ValueError as error:
        raise ProtocolError(f"question {question} about {move!r}") from error


class Barrier:
    """Has each question answered by who knows of the move."""

    def __init__(self, path: Path = SOCKET) -> None:
        self._path = path
        self.moves: dict[str, Asked] = {}
        """Who answers, for each move of which this node knows."""

    async def run(self) -> None:
        """Serve until cancelled."""
        self._path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as server:
            server.bind(os.fspath(self._path))
            self._path.chmod(0o600)
            server.listen(BACKLOG)
            async with asyncio.TaskGroup() as group:
                while True:
                    connection, _ = await accept(server)
                    attend(group, connection, self._attend(connection))

    async def _attend(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with connection:
            try:
                question, number, move = parse_request(await loop.sock_recv(connection, 4096))
                asked = self.moves.get(move)
                if asked:
                    answer = await asked(question, number, read_peer(connection).pid)
                else:
                    logger.warning("%s of an unknown move %r", question.name, move)
                    answer = Answer(_UNKNOWN[question])
                await self._send(connection, answer)
            except (ProtocolError, OSError) as error:
                logger.warning("a move's plugin: %s", error)
            except Exception:
                # It asks again, or its move has ended.
                logger.exception("a move's plugin")

    async def _send(self, connection: socket.socket, answer: Answer) -> None:
        fds = [answer.fd] if answer.fd >= 0 else []
        try:
            socket.send_fds(connection, [answer.pack()], fds)
        finally:
            for fd in fds:
                await close_by_thread(fd)
