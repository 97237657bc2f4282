"""Follows corosync: its view goes to the host, the host's word on votes goes to corosync."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from ssi.common.errors import TimedOut
from ssi.common.wire import Message, get_int
from ssi.node.corosync import Corosync
from ssi.node.hostline import HostLine
from ssi.node.quorum import CorosyncError, Quorum, RingView, Votes

logger = logging.getLogger(__name__)

RETRY_S = 0.01
LOOK_S = 0.5
_T = TypeVar("_T")


async def retry(call: Callable[[], _T], restart: Callable[[], bool] = lambda: False) -> _T:
    """Return what `call` returns once corosync, which has just been started, takes it.

    Raises CorosyncError when `restart`, asked now and then, has started another.
    """
    # Its socket appears some time after its start, and nothing announces it.
    look = time.monotonic() + LOOK_S
    while True:
        try:
            return call()
        except CorosyncError:
            if time.monotonic() > look:
                if restart():
                    raise
                look = time.monotonic() + LOOK_S
            await asyncio.sleep(RETRY_S)


class Members:
    """corosync's membership as this node sees it."""

    def __init__(self, node: int, host: HostLine, corosync: Corosync) -> None:
        self._node = node
        self._corosync = corosync
        self._host = host
        self._votes: Votes | None = None
        self._expected: int | None = None
        self._claims = False
        self.view: RingView | None = None
        self.votes = False
        """This node has a vote: it has mounted the root, or is the first to."""
        self.founds = False
        """It is the first of a cluster, and nothing was before."""
        self.on_gone: Callable[[], None] = lambda: None
        self.on_facts: Callable[[], None] = lambda: None
        """Called when the ring or one of the above has changed."""
        host.hear("expected", self._hear_expected)

    async def connect(self, *, within_s: float) -> None:
        """Connect to corosync, which has been started, and follow its views."""
        try:
            async with asyncio.timeout(within_s):
                # It may abort itself when nodes meet (orf_token_rtr: Assertion
                # `range < QUEUE_RTR_ITEMS_SIZE_MAX' failed).
                while not (quorum := await self._reach()):
                    logger.warning("corosync had ended, and has been started again")
        except TimeoutError as error:
            raise TimedOut(
                f"node{self._node}: corosync did not start", hint="see its corosync.log"
            ) from error
        asyncio.get_running_loop().add_reader(quorum.fileno(), self._dispatch, quorum)
        # Its end is not seen at the connection, which is of datagrams.
        asyncio.get_running_loop().add_reader(self._corosync, self._lose)

    async def _reach(self) -> Quorum | None:
        restart = self._corosync.restart
        try:
            quorum = await retry(lambda: Quorum(self._see), restart)
            self._votes = await retry(Votes, restart)
            await retry(quorum.track, restart)
        except CorosyncError:
            return None
        return quorum

    def _lose(self) -> None:
        asyncio.get_running_loop().remove_reader(self._corosync)
        self.on_gone()

    def _dispatch(self, quorum: Quorum) -> None:
        try:
            quorum.dispatch()
        except CorosyncError:
            asyncio.get_running_loop().remove_reader(quorum.fileno())
            self.on_gone()

    def _see(self, view: RingView) -> None:
        self.view = view
        self._host.say("view", ring=view.ring, quorate=view.quorate, members=list(view.members))
        self._apply()
        self.on_facts()

    def _hear_expected(self, message: Message) -> None:
        self._expected = get_int(message, "votes", 1, 127)
        self._apply()

    def _apply(self) -> None:
        """Tell corosync what it has not been told yet; what it refuses, again at the next view.

        It takes nothing by which the votes it sees would be no quorum: while a dead node is still
        in its ring it cannot expect fewer, nor take our vote before it expects fewer.
        """
        self._apply_expected()
        if self._claims and self._tell(lambda votes: votes.set_votes(self._node, 1)):
            self._claims = False
            self._apply_expected()

    def _apply_expected(self) -> None:
        expected = self._expected
        if expected is not None and self._tell(lambda votes: votes.set_expected(expected)):
            self._expected = None

    def _tell(self, call: Callable[[Votes], None]) -> bool:
        if self._votes is None:
            return False
        try:
            call(self._votes)
        except CorosyncError as error:
            logger.info("%s", error)
            return False
        return True

    def claim_vote(self, *, first: bool = False) -> None:
        """Take a vote for this node: it has mounted the root, or is the first to."""
        self.votes = self._claims = True
        self._apply()
        self.founds = self.founds or first
        self.on_facts()
