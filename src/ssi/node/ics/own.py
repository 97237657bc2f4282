"""Calls of a daemon to itself: the same messages without a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from ssi.common import wire
from ssi.common.wire import Message
from ssi.node.ics.answering import Answering, Handler
from ssi.node.ics.asking import Asking


class _Short:
    """An outlet to somebody in this process."""

    def __init__(self) -> None:
        self.take: Callable[[Message, int], None] | None = None

    def post(self, line: bytes) -> None:
        """Hand `line` over in the loop's next turn."""
        asyncio.get_running_loop().call_soon(self._hand_over, line)

    def _hand_over(self, line: bytes) -> None:
        assert self.take
        self.take(wire.decode(line), len(line))

    async def drain(self) -> None:
        """Nothing is ever under way for long."""


def ask_self(node: int, handlers: Mapping[str, Handler], group: asyncio.TaskGroup) -> Asking:
    """Return what calls the `handlers` of this `node`."""
    there, back = _Short(), _Short()
    asking = Asking(there)
    there.take = Answering(node, back, handlers, group).hear
    back.take = asking.hear
    return asking
