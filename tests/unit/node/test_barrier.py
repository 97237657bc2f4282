"""The socket on which CRIU's plugin waits for a word."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssi.common.errors import ProtocolError
from ssi.node.migration.barrier import Answer, Barrier, Question, Verdict, parse_request
from ssi.node.waiting import wait_until

DEADLINE_S = 20.0
REQUEST = struct.Struct("=Ii32s")


def play(coroutine: Coroutine[Any, Any, None]) -> None:
    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await coroutine

    asyncio.run(run())


@pytest.fixture
def path() -> Iterator[Path]:
    # The name of a socket may not be long.
    with tempfile.TemporaryDirectory(prefix="ssi") as folder:
        yield Path(folder) / "move.sock"


@contextlib.asynccontextmanager
async def serving(path: Path) -> AsyncIterator[Barrier]:
    barrier = Barrier(path)
    task = asyncio.create_task(barrier.run())
    assert await wait_until(path.exists, within_s=DEADLINE_S)
    try:
        yield barrier
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def ask(path: Path, packet: bytes) -> tuple[bytes, list[int]]:
    def talk() -> tuple[bytes, list[int]]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
            line.connect(os.fspath(path))
            line.send(packet)
            data, fds, _, _ = socket.recv_fds(line, 4096, 1)
            return data, list(fds)

    return await asyncio.to_thread(talk)


def test_a_question_is_answered_with_a_descriptor(path: Path) -> None:
    async def run() -> None:
        async with serving(path) as barrier:
            heard = []

            async def answer(question: Question, number: int, asker: int) -> Answer:
                heard.append((question, number, asker))
                fd = os.memfd_create("file")
                os.write(fd, b"content")
                return Answer(Verdict.GO_ON, fd, ["a", "b c"], {"X": "1"})

            barrier.moves["abc"] = answer
            data, (fd,) = await ask(path, REQUEST.pack(Question.FILE, 7, b"abc"))
            assert heard == [(Question.FILE, 7, os.getpid())]
            assert data == struct.pack("=III", Verdict.GO_ON, 3, 1) + b"a\0b c\0X=1\0"
            assert os.pread(fd, 100, 0) == b"content"
            os.close(fd)

    play(run())


@pytest.mark.parametrize(
    ("question", "verdict"),
    [
        (Question.DUMPED, Verdict.GO_ON), (Question.FILE, Verdict.REFUSED),
        (Question.READY, Verdict.KILL), (Question.HOME, Verdict.REFUSED),
        (Question.HELD, Verdict.GO_ON), (Question.CRIU, Verdict.REFUSED),
    ],
)  # fmt: skip
def test_of_a_move_that_nobody_knows_it_stays_where_it_was(
    path: Path, question: Question, verdict: Verdict
) -> None:
    async def run() -> None:
        async with serving(path):
            data, _ = await ask(path, REQUEST.pack(question, 1, b"gone"))
            assert struct.unpack("=III", data) == (verdict, 0, 0)

    play(run())


def test_garbage_does_not_harm(path: Path) -> None:
    async def run() -> None:
        async with serving(path):
            for packet in b"x", bytes(100), REQUEST.pack(99, 0, b"m"), REQUEST.pack(1, 0, b"\xff"):
                assert await ask(path, packet) == (b"", [])
            data, _ = await ask(path, REQUEST.pack(Question.DONE, 0, b"m"))
            assert data

    play(run())


@given(st.binary(max_size=60))
def test_a_request_is_parsed_or_refused(data: bytes) -> None:
    try:
        question, number, move = parse_request(data)
    except ProtocolError:
        return
    packed = REQUEST.pack(question, number, move.encode())
    assert packed == data[:8] + data[8:].rstrip(b"\0").ljust(32, b"\0")
