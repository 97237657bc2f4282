"""Where other daemons' connections come in: who is no daemon of the cluster gets no further."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import socket
from collections.abc import Iterator, Mapping

from ssi.common.errors import ProtocolError
from ssi.node.accepting import accept
from ssi.node.complaints import Complaints
from ssi.node.ics.answering import Answering, Handler
from ssi.node.ics.connection import HELLO_S, Connection
from ssi.node.ics.hello import Hello
from ssi.node.ics.known import Known
from ssi.node.ics.places import Places
from ssi.node.ics.secure import Security

logger = logging.getLogger(__name__)

STRANGERS = 64
STRANGERS_EACH = 8
"""Connections whose hello has not come, in all and from one address."""

KNOWN_S = 2.0
"""Time for the news of a node to reach us: it may come itself first."""

AGAIN_S = 0.1
MANY = 256


class Gate:
    """Lets other nodes' daemons in and has their calls answered."""

    def __init__(self, known: Known, handlers: Mapping[str, Handler], places: Places) -> None:
        self._known = known
        self._handlers = handlers
        self._places = places
        self._strangers: collections.Counter[str] = collections.Counter()
        self._guests: dict[int, Connection] = {}
        self._complaints: dict[str, Complaints] = {}
        known.on_loss.append(self._lose)

    def _lose(self, node: int) -> None:
        if node in self._guests:
            self._guests[node].drop()

    def _complain(self, address: str, text: object) -> None:
        # A line for each address, as long as those are few.
        key = address if address in self._complaints or len(self._complaints) < MANY else ""
        self._complaints.setdefault(key, Complaints(logger)).add(f"refused from {address}", text)

    async def run(self, security: Security) -> None:
        """Serve until cancelled."""
        with self._places.listen(self._known.own.node) as listener:
            async with asyncio.TaskGroup() as group:
                while True:
                    try:
                        come, (address, port) = await accept(listener)
                    except OSError as error:
                        # No descriptor or memory is left: those who have some give them back.
                        logger.warning("accept: %s", error)
                        await asyncio.sleep(AGAIN_S)
                    else:
                        group.create_task(self._receive(come, address, port, security))

    async def _receive(
        self, come: socket.socket, address: str, port: int, security: Security
    ) -> None:
        try:
            with self._as_stranger(come, address, port):
                connection, hello = await self._admit(come, address, security)
        except TimeoutError:
            self._complain(address, f"no hello within {HELLO_S:g} s")
        except (OSError, ProtocolError) as error:
            self._complain(address, error)
        else:
            await self._serve(connection, hello)

    @contextlib.contextmanager
    def _as_stranger(self, come: socket.socket, address: str, port: int) -> Iterator[None]:
        try:
            self._check_room(address, port)
        except ProtocolError:
            come.close()
            raise
        self._strangers[address] += 1
        try:
            yield
        finally:
            self._strangers[address] -= 1
            self._strangers += collections.Counter()  # forgets who has none

    def _check_room(self, address: str, port: int) -> None:
        if port not in self._places.sources:
            raise ProtocolError(f"it comes from port {port}, which is not reserved")
        if self._strangers.total() >= STRANGERS or self._strangers[address] >= STRANGERS_EACH:
            raise ProtocolError("too many connections without a hello")

    async def _admit(
        self, come: socket.socket, address: str, security: Security
    ) -> tuple[Connection, Hello]:
        """Return a connection with a daemon of the cluster, and its hello."""
        async with asyncio.timeout(HELLO_S):
            connection = await Connection.accept(come, security.come)
            try:
                hello = await connection.hear_hello()
                if address != self._places.address(hello.node):
                    raise ProtocolError(f"it says that it is node{hello.node}")
                await self._wait_known(hello)
            except ProtocolError as error:
                await connection.refuse(error)
                raise
            except BaseException:
                connection.drop()
                raise
        return connection, hello

    async def _wait_known(self, hello: Hello) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KNOWN_S):
                await self._known.changes.wait_for(lambda: self._known.admits(hello))
        self._known.check(hello)

    async def _serve(self, connection: Connection, hello: Hello) -> None:
        """Answer the calls of one node until the connection ends."""
        self._lose(hello.node)  # its daemon has been restarted
        self._guests[hello.node] = connection
        connection.greet(self._known.own)
        try:
            async with asyncio.TaskGroup() as group:
                answering = Answering(hello.node, connection, self._handlers, group)
                try:
                    await connection.run(answering.hear, answers=True)
                except ProtocolError as error:
                    self._complain(connection.address, error)
                finally:
                    connection.drop()
                    answering.end()
        finally:
            if self._guests.get(hello.node) is connection:
                del self._guests[hello.node]
