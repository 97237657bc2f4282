"""Answers that other nodes remember until the kernel here has them.

A daemon may be killed between the answer that it has got and the one that it gives the kernel. The
next one gets the request again, asks again, and must be told the same: what has been read or
written is not there a second time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from ssi.common.errors import SsiError
from ssi.node.process.asking import Asking


class Remembered:
    """All that are remembered for this daemon."""

    def __init__(self, asking: Asking, event: str) -> None:
        """`event` is what a node is told that need not remember an answer any more."""
        self._asking = asking
        self._event = event
        self._by_number: dict[int, list[tuple[int, Mapping[str, object]]]] = {}

    def add(self, number: int, node: int, body: Mapping[str, object]) -> None:
        """Take it that `node` remembers what `body` names, for the kernel's request `number`."""
        self._by_number.setdefault(number, []).append((node, body))

    async def settle(self, number: int) -> None:
        """Have forgotten what was remembered for a request: the kernel has been answered."""
        for node, body in self._by_number.pop(number, ()):
            with contextlib.suppress(SsiError):
                await self._asking.tell(node, self._event, body)
