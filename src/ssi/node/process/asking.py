"""Asking another node until it answers or is dead: its daemon may be away for a while."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from ssi.common.errors import NodeLost, TimedOut
from ssi.common.wire import Message
from ssi.node.cluster import Cluster
from ssi.node.ics.ics import Ics

logger = logging.getLogger(__name__)

WITHIN_S = 30.0
FOREVER_S = 1e9
AGAIN_S = 0.2


class Asking:
    """Questions that may be asked twice: who answers must not do twice what is asked."""

    def __init__(self, cluster: Cluster, ics: Ics) -> None:
        self._cluster = cluster
        self._ics = ics

    @property
    def node(self) -> int:
        """This node."""
        return self._cluster.node

    @property
    def alive(self) -> set[int]:
        """The nodes that are up as far as is known."""
        state = self._cluster.known
        return set(state.view.alive) if state else {self.node}

    def is_alive(self, node: int) -> bool:
        """Tell whether `node` is not known to be dead."""
        state = self._cluster.known
        return state is None or node in state.view.alive

    async def tell(self, node: int, name: str, body: Mapping[str, object]) -> None:
        """Send an event, which may get lost; raises NodeLost."""
        await self._ics.tell(node, name, body)

    async def ask(
        self, node: int, name: str, body: Mapping[str, object], *, within_s: float = WITHIN_S
    ) -> Message:
        """Return the answer; raises NodeLost when `node` is dead, or the SsiError it answers with.

        An answer that takes longer than `within_s` is asked for again.
        """
        while self.is_alive(node):
            try:
                return await self._ics.ask(node, name, body, within_s=within_s)
            except (NodeLost, TimedOut) as error:
                if self.is_alive(node):
                    logger.info("node%d, %s: %s; asking again", node, name, error)
                    await asyncio.sleep(AGAIN_S)
        raise NodeLost(f"node{node} was lost")
