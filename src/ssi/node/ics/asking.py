"""The calls that we make over one connection."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from ssi.common import wire
from ssi.common.errors import ProtocolError, SsiError
from ssi.common.wire import Message
from ssi.node.ics.parts import WINDOW, Outlet, Receiver, Sender, render

MAX_CALLS = 4096
"""Calls over one connection at a time; who wants more waits."""

EVENTS = 0
"""The number that stands for events where a call's would."""

MAX_ID = 2**53


class Stream:
    """A call of ours: parts go both ways until its answer comes."""

    def __init__(self, number: int, outlet: Outlet) -> None:
        self.number = number
        self._outlet = outlet
        self._sender = Sender(number, outlet)
        self._receiver = Receiver(number, outlet)
        self._answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        # Nobody may wait for it, and that is no mistake.
        self._answer.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def send(self, body: Mapping[str, object]) -> None:
        """Send a part; waits while the other side is busy. Behind the answer it goes nowhere."""
        await self._sender.send(body)

    def finish(self) -> None:
        """Say that no more parts follow."""
        self._sender.finish()

    async def receive(self) -> Message | None:
        """Return the next part from the other side, None when there is only the answer left."""
        return await self._receiver.receive()

    async def answer(self) -> Message:
        """Return the answer; raise the SsiError that it is, NodeLost if there will be none."""
        return await asyncio.shield(self._answer)

    def cancel(self) -> None:
        """Have the other side end what it does for this call, unless it has."""
        if not self._answer.done():
            self.end(SsiError("the call was cancelled"))
            self._outlet.post(render("cancel", id=self.number))

    def hear(self, kind: str, message: Message, size: int) -> None:
        """Take what the other side says about this call, or raise ProtocolError."""
        if kind == "part":
            body = wire.get_object(message, "body")
            if not self._answer.done():
                self._receiver.put(body, size)
        elif kind == "credit":
            count = wire.get_int(message, "bytes", 1, WINDOW)
            if not self._answer.done():
                self._sender.add(count)
        else:
            self._hear_answer(message)

    def _hear_answer(self, message: Message) -> None:
        try:
            wire.raise_error(message)
            self.end(wire.get_object(message, "body"))
        except ProtocolError as error:
            # One that came as the answer is none about this connection.
            if "error" not in message or message["error"] != ProtocolError.code:
                raise
            self.end(error)
        except SsiError as error:
            self.end(error)

    def end(self, outcome: Message | SsiError) -> None:
        """The call has ended so."""
        if self._answer.done():
            return
        if isinstance(outcome, SsiError):
            self._answer.set_exception(outcome)
        else:
            self._answer.set_result(outcome)
        self._sender.end()
        self._receiver.end()


class Asking:
    """All calls and events of ours over one connection."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._last = EVENTS
        self._streams: dict[int, Stream] = {}
        self._room = asyncio.Semaphore(MAX_CALLS)
        self._events = Sender(EVENTS, outlet)
        self._lost: SsiError | None = None

    async def call(self, name: str, body: Mapping[str, object], *, alone: bool = False) -> Stream:
        """Begin a call; `alone` says that no parts follow. Raises what the connection ended by."""
        await self._room.acquire()
        if self._lost:
            self._room.release()
            raise self._lost
        number = self._last + 1
        try:
            line = render("call", id=number, name=name, alone=alone, body=body)
        except BaseException:
            self._room.release()
            raise
        self._last = number
        self._streams[number] = stream = Stream(number, self._outlet)
        self._outlet.post(line)
        try:
            await self._outlet.drain()
        except BaseException:
            stream.cancel()
            raise
        return stream

    async def tell(self, name: str, body: Mapping[str, object]) -> None:
        """Send an event; waits while earlier ones have not been taken."""
        await self._events.send({"name": name, "body": body})

    def hear(self, message: Message, size: int) -> None:
        """Take a message from the other side, or raise ProtocolError."""
        kind = wire.get_word(message, "is", ("answer", "part", "credit"))
        number = wire.get_int(message, "id", EVENTS, MAX_ID)
        if number == EVENTS:
            wire.get_word(message, "is", ("credit",))
            self._events.add(wire.get_int(message, "bytes", 1, WINDOW))
            return
        if number not in self._streams:
            raise ProtocolError(f"{kind} for call {number}, of which there is none")
        self._streams[number].hear(kind, message, size)
        if kind == "answer":
            # Not before: while a cancelled call winds up, it still counts on the other side.
            del self._streams[number]
            self._room.release()

    def end(self, error: SsiError) -> None:
        """The connection is gone: all calls end by `error`."""
        self._lost = error
        self._events.end()
        for stream in self._streams.values():
            stream.end(error)
            self._room.release()
        self._streams.clear()
