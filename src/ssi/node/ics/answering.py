"""The calls that another node makes over one connection: a task with a handler for each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from ssi.common import wire
from ssi.common.errors import ProtocolError, SsiError
from ssi.common.wire import Message
from ssi.node.ics.asking import EVENTS, MAX_CALLS, MAX_ID
from ssi.node.ics.parts import WINDOW, Nowhere, Outlet, Receiver, Sender, render

logger = logging.getLogger(__name__)


class Call:
    """A call as its handler sees it; for an event nothing goes back."""

    def __init__(
        self, node: int, name: str, body: Message, sender: Sender, receiver: Receiver
    ) -> None:
        self.node = node
        """Who asks."""
        self.name = name
        self.body = body
        self._sender = sender
        self._receiver = receiver

    async def receive(self) -> Message | None:
        """Return the next part from the caller, None behind the last."""
        return await self._receiver.receive()

    async def send(self, body: Mapping[str, object]) -> None:
        """Send the caller a part; waits while he does not use what he has got."""
        await self._sender.send(body)


Handler = Callable[[Call], Awaitable[Message]]


MAX_REASON = 4096
"""Characters of an error on the wire."""


def _render_error(number: int, error: SsiError) -> bytes:
    fields = {
        key: text[:MAX_REASON] if isinstance(text, str) else text
        for key, text in wire.error_message(error).items()
    }
    return render("answer", id=number, **fields)


class _Running:
    """One call while its handler runs."""

    def __init__(self, number: int, outlet: Outlet) -> None:
        self.sender = Sender(number, outlet)
        self.receiver = Receiver(number, outlet)
        self.task: asyncio.Task[bytes] | None = None
        self._cancelled = False

    def hear(self, kind: str, message: Message, size: int) -> None:
        match kind:
            case "part":
                self.receiver.put(wire.get_object(message, "body"), size)
            case "finish":
                self.receiver.end()
            case "credit":
                self.sender.add(wire.get_int(message, "bytes", 1, WINDOW))
            case _:
                self.cancel()

    def cancel(self) -> None:
        """Cancel the handler, once: it may have to wait while it winds up."""
        if self.task and not self._cancelled:
            self._cancelled = True
            self.task.cancel()


class Answering:
    """All calls and events of one node over one connection."""

    def __init__(
        self, node: int, outlet: Outlet, handlers: Mapping[str, Handler], group: asyncio.TaskGroup
    ) -> None:
        """Handlers run in `group`: whoever closes the connection cancels them."""
        self._node = node
        self._outlet = outlet
        self._handlers = handlers
        self._group = group
        self._last = EVENTS
        self._running: dict[int, _Running] = {}
        self._events = Receiver(EVENTS, outlet)
        self._taking = group.create_task(self._take_events())

    def hear(self, message: Message, size: int) -> None:
        """Take a message from the node, or raise ProtocolError."""
        kind = wire.get_word(message, "is", ("call", "part", "finish", "credit", "cancel"))
        number = wire.get_int(message, "id", EVENTS, MAX_ID)
        if kind == "call":
            self._begin(number, message)
        elif number == EVENTS:
            wire.get_word(message, "is", ("part",))
            self._events.put(wire.get_object(message, "body"), size)
        elif number in self._running:
            self._running[number].hear(kind, message, size)
        elif number > self._last:
            raise ProtocolError(f"{kind} for call {number}, which has not begun")
        # Or its handler has ended while this was under way.

    def _begin(self, number: int, message: Message) -> None:
        name, body = wire.get_text(message, "name"), wire.get_object(message, "body")
        alone = wire.get_flag(message, "alone")
        if number <= self._last:
            raise ProtocolError(f"call {number} behind call {self._last}")
        if len(self._running) >= MAX_CALLS:
            raise ProtocolError(f"more than {MAX_CALLS} calls at once")
        self._last = number
        self._running[number] = running = _Running(number, self._outlet)
        if alone:
            running.receiver.end()
        call = Call(self._node, name, body, running.sender, running.receiver)
        running.task = self._group.create_task(self._run(number, call))
        # Not at the end of the coroutine: of one that is cancelled at once nothing is run.
        running.task.add_done_callback(lambda task: self._end(number, task))

    async def _run(self, number: int, call: Call) -> bytes:
        """Run the handler; return the line with its answer."""
        try:
            return render("answer", id=number, body=await self._handle(call))
        except SsiError as error:
            return _render_error(number, error)
        except Exception:
            logger.exception("%s, asked by node%d", call.name, self._node)
            return _render_error(number, SsiError("an error in the node daemon; see its log"))

    async def _handle(self, call: Call) -> Message:
        if call.name not in self._handlers:
            raise SsiError(f"the node daemon knows no {call.name!r:.60}")
        return await self._handlers[call.name](call)

    def _end(self, number: int, task: asyncio.Task[bytes]) -> None:
        self._running.pop(number).sender.end()
        if task.cancelled():
            self._outlet.post(_render_error(number, SsiError("the call was cancelled")))
        else:
            self._outlet.post(task.result())

    async def _take_events(self) -> None:
        """Handle events one by one, in the order they were sent."""
        while (event := await self._events.receive()) is not None:
            sender, receiver = Sender(EVENTS, Nowhere()), Receiver(EVENTS, Nowhere())
            sender.end()
            receiver.end()
            try:
                name, body = wire.get_text(event, "name"), wire.get_object(event, "body")
                await self._handle(Call(self._node, name, body, sender, receiver))
            except SsiError as error:
                logger.warning("an event of node%d: %s", self._node, error)
            except Exception:
                logger.exception("an event of node%d", self._node)

    def end(self) -> None:
        """The connection is gone: nobody waits for what still runs."""
        self._taking.cancel()
        for running in self._running.values():
            running.cancel()
