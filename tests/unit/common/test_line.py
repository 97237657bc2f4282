"""Messages on a stream."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from ssi.common import wire
from ssi.common.errors import ProtocolError
from ssi.common.line import Line
from ssi.common.streams import Credit


@asynccontextmanager
async def line_and_peer() -> AsyncIterator[tuple[Line, socket.socket]]:
    """Yield a line and the bare socket at its other end."""
    ours, theirs = socket.socketpair()
    line = Line(*await asyncio.open_unix_connection(sock=ours, limit=wire.MAX_LINE))
    with theirs:
        theirs.setblocking(False)
        try:
            yield line, theirs
        finally:
            theirs.close()
            await line.close()


def run(test: Callable[[Line, socket.socket], Awaitable[None]]) -> None:
    async def body() -> None:
        async with asyncio.timeout(10), line_and_peer() as (line, peer):
            await test(line, peer)

    asyncio.run(body())


def test_messages_arrive_whole_and_in_order() -> None:
    async def test(line: Line, peer: socket.socket) -> None:
        for part in (b'{"a"', b':1}\n{"a":2}\n', b"\n\n", b'{"a":3}\n'):
            await asyncio.get_running_loop().sock_sendall(peer, part)
        assert [await line.receive() for _ in range(3)] == [{"a": 1}, {"a": 2}, {"a": 3}]

    run(test)


def test_the_end_is_none_also_in_the_middle_of_a_message() -> None:
    async def test(line: Line, peer: socket.socket) -> None:
        peer.send(b'{"a":1}\n{"a":')
        peer.close()
        assert await line.receive() == {"a": 1}
        assert await line.receive() is None

    run(test)


def test_a_line_that_is_too_long_is_refused() -> None:
    async def test(line: Line, peer: socket.socket) -> None:
        sending = asyncio.ensure_future(
            asyncio.get_running_loop().sock_sendall(peer, b"x" * (wire.MAX_LINE + 2))
        )
        with pytest.raises(ProtocolError, match="bytes"):
            await line.receive()
        await sending

    run(test)


def test_messages_leave_out_what_is_none(caplog: pytest.LogCaptureFixture) -> None:
    async def test(line: Line, peer: socket.socket) -> None:
        peer.send(b'nonsense\n[]\n{"good":1}\n')
        peer.close()
        assert [message async for message in line.messages()] == [{"good": 1}]

    run(test)
    assert caplog.text.count("refused") == 2


def test_credit_holds_back_what_exceeds_it() -> None:
    async def body() -> None:
        credit = Credit()
        await credit.take(wire.WINDOW)
        more = asyncio.ensure_future(credit.take(100))
        await asyncio.sleep(0)
        assert not more.done()
        credit.add(99)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not more.done()
        credit.add(1)
        async with asyncio.timeout(5):
            await more

    asyncio.run(body())
