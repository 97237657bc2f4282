"""The nodes' clocks agree: all go by the init node's, which goes by whatever its machine has.

A node asks the init node for its time, of a few answers takes the one that came quickest, and slews
its own clock, or sets it if it is far off. Who asks cannot know better than half of the round trip.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import logging
import time

from ssi.common.errors import SsiError
from ssi.common.wire import Message, get_number
from ssi.node.cluster import Cluster
from ssi.node.ics.answering import Call
from ssi.node.ics.ics import Ics

logger = logging.getLogger(__name__)

EVERY_S = 8.0
WITHIN_S = 2.0
SAMPLES = 4

CALM_S = 0.001
"""A difference of less is left alone."""

STEP_S = 0.25
"""A larger one is not slewed, which takes 2000 times as long as it is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """What one question told: how far the other clock is ahead, and what doubt is left."""

    ahead_s: float
    doubt_s: float


def take_sample(before_s: float, theirs_s: float, after_s: float) -> Sample:
    """Return what it tells that their clock showed `theirs_s` between two times of ours."""
    return Sample(theirs_s - (before_s + after_s) / 2, (after_s - before_s) / 2)


def correction(samples: list[Sample]) -> float:
    """Return by how many seconds to correct our clock: 0 if that is in doubt, or not worth it."""
    best = min(samples, key=lambda sample: sample.doubt_s)
    return best.ahead_s if abs(best.ahead_s) > max(best.doubt_s, CALM_S) else 0.0


class _TimeVal(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("microseconds", ctypes.c_long))


def correct_clock(by_s: float) -> None:
    """Move this kernel's clock by so many seconds: slowly if it is little."""
    if abs(by_s) > STEP_S:
        logger.warning("the clock is set by %+.3f s", by_s)
        time.clock_settime(time.CLOCK_REALTIME, time.time() + by_s)
        return
    microseconds = round(by_s * 1e6)
    delta = _TimeVal(0, microseconds)
    if ctypes.CDLL(None, use_errno=True).adjtime(ctypes.byref(delta), None):
        logger.warning("adjtime: errno %d", ctypes.get_errno())


class Clocks:
    """Keeps this node's clock with the init node's."""

    def __init__(self, cluster: Cluster, ics: Ics) -> None:
        self._cluster = cluster
        self._ics = ics
        ics.serve("clock", self._answer)

    async def _answer(self, _: Call) -> Message:
        return {"time": time.time()}

    async def run(self) -> None:
        """Correct the clock from time to time, and when there is another init node."""
        while True:
            leader = self._init_node()
            if leader is not None and leader != self._cluster.node:
                await self._follow(leader)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._wait_other(leader)

    async def _wait_other(self, leader: int | None) -> None:
        await self._cluster.changes.wait_for(lambda: self._init_node() != leader)

    def _init_node(self) -> int | None:
        return self._cluster.known.view.init_node if self._cluster.known else None

    async def _follow(self, leader: int) -> None:
        try:
            samples = [await self._sample(leader) for _ in range(SAMPLES)]
        except SsiError as error:
            logger.info("clock: %s", error)
            return
        if by_s := correction(samples):
            correct_clock(by_s)

    async def _sample(self, leader: int) -> Sample:
        before = time.time()
        answer = await self._ics.ask(leader, "clock", within_s=WITHIN_S)
        return take_sample(before, get_number(answer, "time"), time.time())
