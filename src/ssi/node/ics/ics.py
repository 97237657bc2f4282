"""Internode communication: what this daemon serves to the others, and how it asks them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping

from ssi.common.addresses import node_name
from ssi.common.errors import ProtocolError, TimedOut
from ssi.common.wire import Message, get_bytes
from ssi.node.ics.answering import Call, Handler
from ssi.node.ics.asking import Asking, Stream
from ssi.node.ics.gate import Gate
from ssi.node.ics.hello import Hello
from ssi.node.ics.known import Known
from ssi.node.ics.own import ask_self
from ssi.node.ics.places import Places
from ssi.node.ics.secure import KEY_BYTES, Security, make_security
from ssi.node.ics.way import Way
from ssi.node.state.view import View

__all__ = ["Call", "Handler", "Ics", "Stream"]

NOTHING: Message = {}

MakeSecurity = Callable[[bytes, str], Security]


async def answer_ping(_: Call) -> Message:
    """Answer nothing; that is enough to know that the daemon is there."""
    return NOTHING


class Ics:
    """This daemon among the others. A node asks itself by the same rules, without a connection."""

    def __init__(
        self, node: int, cluster: str, boot: str, *,
        places: Places | None = None, secure: MakeSecurity = make_security,
    ) -> None:  # fmt: skip
        self.node = node
        self._places = places or Places()
        self._secure = secure
        self._known = Known(Hello(cluster, node, boot))
        self._handlers: dict[str, Handler] = {"ping": answer_ping}
        self._gate = Gate(self._known, self._handlers, self._places)
        self._key: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._ready = asyncio.Event()
        self._own: Asking | None = None
        self._make_way: Callable[[int], Way] | None = None
        self._ways: dict[int, Way] = {}
        self._known.on_loss.append(self._lose)

    def serve(self, name: str, handler: Handler) -> None:
        """Have `handler` answer the calls, and take the events, of this name."""
        self._handlers[name] = handler

    def set_members(self, view: View) -> None:
        """The living nodes of `view` may talk; calls to others end."""
        self._known.set_members(view)

    def hear_key(self, message: Message) -> None:
        """Take the cluster's key from the host; without it there is no talk."""
        key = get_bytes(message, "key")
        if len(key) != KEY_BYTES:
            raise ProtocolError(f"a key of {len(key)} bytes")
        if not self._key.done():
            self._key.set_result(key)

    async def run(self) -> None:
        """Talk to the others until cancelled."""
        security = self._secure(await self._key, node_name(self.node))
        async with asyncio.TaskGroup() as group:
            self._own = ask_self(self.node, self._handlers, group)
            self._make_way = lambda node: Way(node, self._known, self._places, security, group)
            self._ready.set()
            await self._gate.run(security)

    def _lose(self, node: int) -> None:
        if way := self._ways.pop(node, None):
            way.lose()

    async def _find(self, node: int) -> Asking:
        self._known.check_alive(node)
        await self._ready.wait()
        if node == self.node:
            assert self._own
            return self._own
        if node not in self._ways:
            assert self._make_way
            self._ways[node] = self._make_way(node)
        return await self._ways[node].find()

    async def ask(
        self, node: int, name: str, body: Mapping[str, object] = NOTHING, *, within_s: float
    ) -> Message:
        """Return the answer of `node` to a question.

        Raises the SsiError it answers with, NodeLost when it dies or cannot be reached, TimedOut.
        """
        try:
            async with asyncio.timeout(within_s), self._calling(node, name, body, alone=True) as it:
                return await it.answer()
        except TimeoutError as error:
            raise TimedOut(f"node{node} did not answer within {within_s:g} s") from error

    @contextlib.asynccontextmanager
    async def call(
        self, node: int, name: str, body: Mapping[str, object] = NOTHING
    ) -> AsyncIterator[Stream]:
        """Begin a call in which both sides send parts; who leaves before its answer cancels it.

        Raises NodeLost when `node` cannot be reached.
        """
        async with self._calling(node, name, body, alone=False) as stream:
            yield stream

    @contextlib.asynccontextmanager
    async def _calling(
        self, node: int, name: str, body: Mapping[str, object], *, alone: bool
    ) -> AsyncIterator[Stream]:
        stream = await (await self._find(node)).call(name, body, alone=alone)
        try:
            yield stream
        finally:
            stream.cancel()

    async def tell(self, node: int, name: str, body: Mapping[str, object] = NOTHING) -> None:
        """Send an event. It may get lost with the connection, and nobody says so.

        Events of one node to another are taken one by one in the order they were told. Raises
        NodeLost when `node` cannot be reached.
        """
        await (await self._find(node)).tell(name, body)
