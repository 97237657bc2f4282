"""The way to one other node: a connection that is opened when somebody has a call to make."""

from __future__ import annotations

import asyncio
import logging

from ssi.common.errors import NodeLost, ProtocolError
from ssi.node.complaints import Complaints
from ssi.node.ics.asking import Asking
from ssi.node.ics.connection import Connection
from ssi.node.ics.known import Known
from ssi.node.ics.places import Places
from ssi.node.ics.secure import Security

logger = logging.getLogger(__name__)

REACH_S = 10.0
"""How long a daemon is tried that does not answer: it may just be starting anew."""

AGAIN_S = 0.1


class Way:
    """Our connection to one node, while there is one."""

    def __init__(
        self, node: int, known: Known, places: Places, security: Security, group: asyncio.TaskGroup
    ) -> None:
        self._node = node
        self._known = known
        self._places = places
        self._security = security
        self._group = group
        self._complaints = Complaints(logger)
        self._open: asyncio.Future[Asking] | None = None
        self._keeping: asyncio.Task[None] | None = None

    async def find(self) -> Asking:
        """Return what calls the node, connected; raises NodeLost."""
        self._known.check_alive(self._node)
        if self._open is None:
            self._open = asyncio.get_running_loop().create_future()
            # Who wanted it may have given up.
            self._open.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._keeping = self._group.create_task(self._keep(self._open))
        return await asyncio.shield(self._open)

    def lose(self) -> None:
        """The node has died: all calls to it end."""
        if self._keeping:
            self._keeping.cancel()

    async def _keep(self, found: asyncio.Future[Asking]) -> None:
        """Connect, and have the answers heard until the connection ends."""
        loss = NodeLost(f"node{self._node} was lost")
        try:
            connection = await self._connect()
            asking = Asking(connection)
            found.set_result(asking)
            try:
                await connection.run(asking.hear, answers=False)
                loss = NodeLost(f"node{self._node}: its daemon has ended the connection")
            except ProtocolError as error:
                self._complain(error)
                loss = NodeLost(f"node{self._node}: its daemon does not keep to the protocol")
            finally:
                connection.drop()
                asking.end(loss)
        except NodeLost as error:
            loss = error
        finally:
            if self._open is found:
                self._open = None
            if not found.done():
                found.set_exception(loss)

    def _complain(self, error: object) -> None:
        self._complaints.add(f"node{self._node}", error)

    async def _connect(self) -> Connection:
        said: object = "no answer"
        try:
            async with asyncio.timeout(REACH_S):
                while True:
                    try:
                        return await self._try()
                    except (OSError, ProtocolError) as error:
                        said = error
                    await asyncio.sleep(AGAIN_S)
        except TimeoutError as error:
            self._complain(said)
            raise NodeLost(f"node{self._node} does not answer: {said}") from error

    async def _try(self) -> Connection:
        own = self._places.bind_own(self._known.own.node)
        address = (self._places.address(self._node), self._places.port)
        connection = await Connection.open(own, address, self._security.open)
        try:
            connection.greet(self._known.own)
            hello = await connection.hear_hello()
            if hello.node != self._node:
                raise ProtocolError(f"node{hello.node} answers for node{self._node}")
            self._known.check(hello)
        except BaseException:
            connection.drop()
            raise
        return connection
